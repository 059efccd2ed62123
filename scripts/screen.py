"""A program's screen as an SVG picture for the README: runs it on a terminal of its own, and draws what stands there
at the end. usage: pip install pyte; python scripts/screen.py OUT.svg COLUMNS [--from LINE] [--lines N] COMMAND..."""

import argparse
import html
import os
import pty
import subprocess
import sys
import threading

import pyte

CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.43, 19, 14
BACKGROUND, FOREGROUND = "#16181d", "#d7dae0"
COLOURS = {
    "black": "#5c6370", "red": "#ef6b73", "green": "#8cc265", "brown": "#e5c07b", "blue": "#61afef",
    "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d7dae0",
    "brightblack": "#7f8794", "brightred": "#ff7b86", "brightgreen": "#a5e075", "brightyellow": "#f0d197",
    "brightblue": "#7cc0ff", "brightmagenta": "#d896ea", "brightcyan": "#7fd4de", "brightwhite": "#ffffff",
}


def run(command, columns):
    """The terminal after the command has ended."""
    screen = pyte.Screen(columns, 2000)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    import fcntl, struct, termios
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
    os.close(slave)

    def read():
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            if not data:
                return
            stream.feed(data)

    reader = threading.Thread(target=read)
    reader.start()
    code = child.wait()
    reader.join(timeout=5)
    if code != 0:
        sys.exit(f"{command[0]} ended with {code}")
    return screen


def spans(row, columns):
    """Runs of cells of one look: (column, text, colour, struck, bold)."""
    last = None
    for column in range(columns):
        cell = row[column]
        look = (cell.fg, cell.strikethrough, cell.bold)
        if last and last[2] == look:
            last[1] += cell.data
        else:
            if last:
                yield last
            last = [column, cell.data, look]
    if last:
        yield last


def draw(screen, columns, first, count):
    used = max(y for y in range(screen.lines) if any(screen.buffer[y][x].data != " " for x in range(columns))) + 1
    rows = range(first, min(used, first + count))
    width, height = columns * CELL_WIDTH + 2 * MARGIN, len(rows) * LINE_HEIGHT + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14" xml:space="preserve">',
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
    ]
    for line, y in enumerate(rows):
        for column, text, (fg, struck, bold) in spans(screen.buffer[y], columns):
            if not text.strip():
                continue
            left = len(text) - len(text.lstrip())
            text, column = text.strip(), column + left
            colour = FOREGROUND if fg == "default" else COLOURS.get(fg, f"#{fg}")
            style = ' text-decoration="line-through"' if struck else ""
            style += ' font-weight="bold"' if bold else ""
            out.append(
                f'<text x="{MARGIN + column * CELL_WIDTH:.1f}" y="{MARGIN + line * LINE_HEIGHT + 14}" fill="{colour}"'
                f' textLength="{len(text) * CELL_WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"{style}>'
                f"{html.escape(text)}</text>"
            )
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("columns", type=int)
    parser.add_argument("--from", dest="first", type=int, default=0, help="first line that is drawn")
    parser.add_argument("--lines", type=int, default=1000, help="lines that are drawn")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    a = parser.parse_args()
    screen = run(a.command, a.columns)
    with open(a.out, "w", encoding="utf-8") as file:
        file.write(draw(screen, a.columns, a.first, a.lines))


if __name__ == "__main__":
    main()
