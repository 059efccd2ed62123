#!/usr/bin/env python3
"""The hub's cache shared between smolten and Python's huggingface_hub, through a small server on this machine.

    check_hub.py --smolten BINARY --gguf FILE.gguf

FILE is saved as a folder by smolten and served as the model org/tiny. Then, each with a cache of its own:
  smolten fetches it; huggingface_hub finds it with local_files_only, and transformers loads its tokenizer from there
  huggingface_hub fetches it; smolten finds it with HF_HUB_OFFLINE=1
Nothing else is asked for anything: the server counts.
"""

import argparse
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

COMMIT = "89abcdef" * 5


class Hub(http.server.BaseHTTPRequestHandler):
    """Listing, metadata and content of one repository, as far as both clients ask."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}
    count = 0

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        Hub.count += 1
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            tree = [{"type": "file", "path": p, "size": len(c), "oid": digest(p, c)[:40], **lfs(p, c)} for p, c in self.files.items()]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        if path.startswith("/api/models/org/tiny"):
            siblings = [
                {"rfilename": p, "size": len(c), "blobId": digest(p, c)[:40], **lfs(p, c)} for p, c in self.files.items()
            ]
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
        name = path.split("/resolve/")[-1].split("/", 1)[-1]
        headers = {"X-Repo-Commit": COMMIT}
        if "/resolve/" not in path or name not in self.files:
            return self.reply(404, b"", {**headers, "X-Error-Code": "EntryNotFound"}, body)
        content = self.files[name]
        headers |= {"ETag": f'"{digest(name, content)}"', "X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest(name, content)}"'}
        self.reply(200, content, headers, body)

    def reply(self, status, content, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def digest(name, content):
    """The blob's name: SHA-256 for a large file, git's SHA-1 for a small one."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs(name, content):
    if not name.endswith(".safetensors"):
        return {}
    return {"lfs": {"sha256": digest(name, content), "oid": digest(name, content), "size": len(content), "pointerSize": 130}}


def python(code, environment):
    """huggingface_hub reads its environment when it is imported, so each use is a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--gguf", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, pathlib.Path(folder))


def run(args, folder):
    smolten = [args.smolten]
    saved = folder / "saved"
    export = ["export", "--model", args.gguf, "--out", str(saved), "--format", "hf", "--type", "bf16"]
    subprocess.run(smolten + export, check=True, stdout=subprocess.DEVNULL)
    Hub.files = {f.name: f.read_bytes() for f in saved.iterdir()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HTTP_PROXY", "http_proxy", "ALL_PROXY"))}
    base |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HUB_DISABLE_XET": "1"}
    generate = smolten + "generate --model org/tiny --prompt Hi --max-new-tokens 4 --json --device cpu".split()

    ours = base | {"HF_HOME": str(folder / "ours")}
    first = json.loads(subprocess.run(generate, check=True, capture_output=True, env=ours).stdout)
    asked = Hub.count
    code = "from huggingface_hub import snapshot_download as s; print(s('org/tiny', local_files_only=True))"
    path = pathlib.Path(python(code, ours))
    assert path.name == COMMIT and {f.name for f in path.iterdir()} == set(Hub.files), path
    assert all((path / name).read_bytes() == content for name, content in Hub.files.items())
    code = "import transformers; t = transformers.AutoTokenizer.from_pretrained('org/tiny', local_files_only=True); print(t.eos_token)"
    assert python(code, ours | {"HF_HUB_OFFLINE": "1"}) == "<|im_end|>"
    assert Hub.count == asked, "the server was asked again"
    print(f"smolten fetched {len(Hub.files)} files in {asked} requests; huggingface_hub and transformers found them")

    theirs = base | {"HF_HOME": str(folder / "theirs")}
    python("from huggingface_hub import snapshot_download as s; print(s('org/tiny'))", theirs)
    asked = Hub.count
    offline = subprocess.run(generate, check=True, capture_output=True, env=theirs | {"HF_HUB_OFFLINE": "1"})
    assert json.loads(offline.stdout) == first and Hub.count == asked
    online = subprocess.run(generate, check=True, capture_output=True, env=theirs)
    assert json.loads(online.stdout) == first and Hub.count == asked + 1, "only the listing is to be asked for"
    print("huggingface_hub fetched it; smolten found it, offline and online")


if __name__ == "__main__":
    main()
