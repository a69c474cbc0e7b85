#!/usr/bin/env python3
"""Executes a command for which one system call is refused with ENOSYS.

usage: ci/refuse.py NUMBER COMMAND [ARGUMENT...]
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def instruction(code, if_true, if_false, k):
    return struct.pack("HBBI", code, if_true, if_false, k)


def refuse(call):
    """From here on `call` fails, in this process and what it executes."""
    program = b"".join(
        [
            instruction(LOAD, 0, 0, 0),  # the number of the call
            instruction(JUMP_IF_EQUAL, 0, 1, call),
            instruction(RETURN, 0, 0, REFUSE | errno.ENOSYS),
            instruction(RETURN, 0, 0, ALLOW),
        ]
    )
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    header = ctypes.create_string_buffer(header)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in [
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, MODE_FILTER, ctypes.addressof(header), 0, 0),
    ]:
        if libc.prctl(*(ctypes.c_ulong(argument) for argument in arguments)) != 0:
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    refuse(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
