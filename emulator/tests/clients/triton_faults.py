def check(device):
    pass
