"""Compiles the module that calls libvarve, from the declarations of its own headers.

cffi has the C compiler compare them with the installed headers, so a layout that differs is an error
when the wheel is built and not when it is used.
"""

import os
import re
import shlex
import subprocess

from cffi import FFI


def pkg_config(option):
    output = subprocess.run(
        ["pkg-config", option, "varve"], check=True, capture_output=True, text=True
    ).stdout
    return shlex.split(output)


def declarations(path):
    """A header as cffi reads it: without comments, directives, and what is for C++."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"#ifdef __cplusplus\n.*?#endif\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^#[^\n]*\n", "", text, flags=re.MULTILINE)
    # The compiler has the value.
    return text.replace("= INT32_MIN", "= ...")


include = next(
    (flag[2:] for flag in pkg_config("--cflags") if flag.startswith("-I")), "/usr/include"
)
libraries = pkg_config("--libs")

ffibuilder = FFI()
for header in ("varve.h", "varve_guest.h", "varve_repair.h"):
    ffibuilder.cdef(declarations(os.path.join(include, header)))
ffibuilder.cdef(
    """
    extern "Python" int varve_python_progress(void *, const struct varve_progress *);
    extern "Python" void varve_python_finding(
        void *, const struct varve_corruption *, int, const varve_id *, size_t);
    extern "Python" void varve_python_loss(void *, const struct varve_loss *);
    """
)
ffibuilder.set_source(
    "varve._varve",
    "#include <varve.h>",
    include_dirs=[include],
    library_dirs=[flag[2:] for flag in libraries if flag.startswith("-L")],
    libraries=[flag[2:] for flag in libraries if flag.startswith("-l")],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
