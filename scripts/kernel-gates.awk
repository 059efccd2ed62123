# One kernel file for one GPU: what its header states (first file) against what ptxas reports (second) and the machine
# code as nvdisasm writes it (third). Prints a line per kernel; complaints go to standard error, then it fails.
#
# Budget     NAMES: R registers, S bytes shared, B blocks of N threads (sm_75: M)     so many on a multiprocessor
# Main loop  NAMES: H HMMA, L LDSM                                                    in the whole kernel
#
# NAMES are kernels without the suffix of their type, a * stands for anything. Every kernel but the naive ones has a
# budget and a statement of bytes (tests/traffic checks that), and one without a main loop has no HMMA.
BEGIN {
    threads_of[75] = 1024; threads_of[80] = threads_of[90] = 2048; threads_of[86] = threads_of[89] = threads_of[120] = 1536
    blocks_of[75] = blocks_of[86] = 16; blocks_of[89] = 24; blocks_of[80] = blocks_of[90] = blocks_of[120] = 32
    shared_of[75] = 64; shared_of[80] = 164; shared_of[90] = 228; shared_of[86] = shared_of[89] = shared_of[120] = 100
}
FNR == 1 { part++ }

# Header: a statement by name, of one sort.
part == 1 && /^\/\/ .*: [0-9]+ (registers|HMMA), / {
    sort = /registers,/ ? "budget" : "loop"
    text = $0
    sub(/^\/\/ *(Budget|Main loop)? */, "", text)
    names = substr(text, 1, index(text, ":") - 1)
    count = split(names, name, /, */)
    for (i = 1; i <= count; i++) {
        gsub(/\*/, ".*", name[i])
        stated[sort, ++patterns[sort]] = substr(text, index(text, ":") + 2)
        pattern[sort, patterns[sort]] = "^" name[i] "$"
    }
}
part == 1 && /^\/\// {
    text = $0
    while (match(text, /[a-z0-9_]+: read /)) {
        moves_stated[substr(text, RSTART, RLENGTH - 7)] = 1
        text = substr(text, RSTART + RLENGTH)
    }
}
function statement(sort, kernel, i) {
    sub(/_(f32|bf16|f16)$/, "", kernel)
    for (i = 1; i <= patterns[sort]; i++)
        if (kernel ~ pattern[sort, i]) return stated[sort, i]
    return ""
}

part == 2 && /Compiling entry function/ { split($0, piece, "'"); kernel = piece[2]; kernels[++n] = kernel }
part == 2 && /bytes stack frame/ { stack[kernel] = $1; spilt[kernel] = $5 + $9 }
part == 2 && /Used [0-9]+ registers/ {
    registers[kernel] = $5
    shared[kernel] = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
}

part == 3 && /^\.text\./ { kernel = substr($1, 7, length($1) - 7) }
part == 3 && /^[ \t]+\/\*[0-9a-f]+\*\// {
    opcode = $2 ~ /^@/ ? $3 : $2
    if (opcode ~ /^HMMA/) hmma[kernel]++
    else if (opcode ~ /^LDSM/) ldsm[kernel]++
    else if (opcode ~ /^(LDL|STL)/) spilt[kernel]++
    else if (opcode ~ /^(LDG|STG|LDGSTS)\./) { moves[kernel]++; wide[kernel] += opcode ~ /\.128/ }
}

function complain(kernel, what) {
    print "kernel-gates: " kernel ", sm_" arch ": " what > "/dev/stderr"
    failed = 1
}
function least(a, b) { return a < b ? a : b }
# Blocks on a multiprocessor: of the four parts of 16384 registers each takes whole warps.
function resident(used, bytes, threads, warps, most) {
    warps = threads / 32
    most = least(blocks_of[arch], int(threads_of[arch] / threads))
    most = least(most, int(4 * int(16384 / (int((used + 7) / 8) * 8 * 32)) / warps))
    return least(most, int(shared_of[arch] * 1024 / (bytes + (arch == 75 ? 0 : 1024))))
}
function check_budget(kernel, text, most, bytes, wanted, threads) {
    most = text + 0
    match(text, /[0-9]+ bytes/); bytes = substr(text, RSTART) + 0
    if (!match(text, /[0-9]+ blocks? of [0-9]+ threads/)) return complain(kernel, "its budget says nothing of blocks")
    wanted = substr(text, RSTART) + 0
    match(text, /of [0-9]+ threads/); threads = substr(text, RSTART + 3) + 0
    if (least(255, int(65536 / wanted / threads / 8) * 8) < most) complain(kernel, "so many registers are no " wanted " blocks")
    if (match(text, "sm_" arch ": [0-9]+")) wanted = substr(text, RSTART + length("sm_" arch ": ")) + 0
    if (registers[kernel] > most) complain(kernel, registers[kernel] " registers, budget " most)
    if (shared[kernel] > bytes) complain(kernel, shared[kernel] " bytes of shared memory, budget " bytes)
    blocks = resident(registers[kernel], shared[kernel], threads)
    if (blocks < wanted) complain(kernel, blocks " blocks on a multiprocessor, budget " wanted)
}
function check_loop(kernel, text, products, loads) {
    products = (text + 0) * (arch == 75 ? 2 : 1)  # m16n8k8 instead of m16n8k16
    loads = match(text, /[0-9]+ LDSM/) ? substr(text, RSTART) + 0 : 0
    if (hmma[kernel] + 0 != products) complain(kernel, hmma[kernel] + 0 " HMMA instead of " products)
    if (ldsm[kernel] + 0 != loads) complain(kernel, ldsm[kernel] + 0 " LDSM instead of " loads)
}
END {
    for (i = 1; i <= n; i++) {
        kernel = kernels[i]
        blocks = "-"
        if (stack[kernel] + spilt[kernel] > 0) complain(kernel, stack[kernel] " bytes of stack, " spilt[kernel] " spilt")
        if (kernel !~ /_naive/) {
            budget = statement("budget", kernel)
            if (budget == "") complain(kernel, "the header states no budget")
            else check_budget(kernel, budget)
            check_loop(kernel, statement("loop", kernel))
            base = kernel
            sub(/_(f32|bf16|f16)$/, "", base)
            sub(/_[0-9]+x[0-9]+$/, "", base)  # the tile of a product
            if (!(base in moves_stated)) complain(kernel, "the header states no bytes")
        }
        printf "sm_%-4s %-32s %3d registers, %5d bytes shared, blocks %2s, HMMA %3d, LDSM %2d, 128-bit %2d of %2d\n", arch,
            kernel, registers[kernel], shared[kernel], blocks, hmma[kernel], ldsm[kernel], wide[kernel], moves[kernel]
    }
    if (n == 0) complain("no kernel", "ptxas reported none")
    exit failed
}
