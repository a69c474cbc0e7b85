#!/usr/bin/env python3
"""Runs `top` on `top --demo 12` in a terminal of its own for a while, and writes what the
terminal shows as examples/top/top.svg.

usage: examples/top/picture.py [PROGRAM]    (target/release/examples/top); needs `pip install pyte`
"""

import fcntl
import html
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte

COLUMNS, LINES, SECONDS = 132, 18, 14
WIDTH, HEIGHT = 8.4, 18
COLORS = {"default": "#d8dee9", "black": "#1b1f27", "green": "#a3d977", "brown": "#f0c674",
          "red": "#ff6b6b", "cyan": "#7fd1de", "brightblack": "#7a8294"}


def show(program):
    """The screen, after a while."""
    target = subprocess.Popen([program, "--demo", "12"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    process = target.stdout.readline().strip()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(program, [program, process, "--interval", "500"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            stream.feed(os.read(terminal, 1 << 16))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    target.stdin.close()
    target.wait()
    return screen


def color(name):
    """A color of pyte's, which is a name or six digits, as SVG has it."""
    return COLORS.get(name) or "#" + name


def svg(screen):
    """The same as a picture: a run of cells of one style is one text."""
    width, height = COLUMNS * WIDTH + 16, LINES * HEIGHT + 16
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}">',
           f'<rect width="100%" height="100%" rx="6" fill="{COLORS["black"]}"/>',
           '<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14" '
           'xml:space="preserve">']
    for y in range(LINES):
        row, x = screen.buffer[y], 0
        while x < COLUMNS:
            style = (row[x].fg, row[x].bg, row[x].bold)
            begin = x
            while x < COLUMNS and (row[x].fg, row[x].bg, row[x].bold) == style:
                x += 1
            text = "".join(row[n].data for n in range(begin, x))
            fg, bg, bold = style
            left, top, run = 8 + begin * WIDTH, 8 + y * HEIGHT, (x - begin) * WIDTH
            if bg != "default":
                out.append(f'<rect x="{left:.1f}" y="{top}" width="{run:.1f}" '
                           f'height="{HEIGHT}" fill="{color(bg)}"/>')
            if text.strip():
                weight = ' font-weight="bold"' if bold else ""
                out.append(f'<text x="{left:.1f}" y="{top + 14}" textLength="{run:.1f}" '
                           f'fill="{color(fg)}"{weight}>{html.escape(text)}</text>')
    return "\n".join(out + ["</g>", "</svg>", ""])


if __name__ == "__main__":
    where = pathlib.Path(__file__).parent
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/examples/top"
    (where / "top.svg").write_text(svg(show(program)))
