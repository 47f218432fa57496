#!/bin/sh
# A plug-in from nothing to its verdict. DIR is where Tilewise is installed, with DIR/bin on PATH.
# ctest runs it (tests/new_kernel_test.cmake).
set -e
# [snippet commands]
tilewise new-kernel my_kernel
cmake -S my_kernel -B my_kernel/build -DCMAKE_PREFIX_PATH="$DIR"
cmake --build my_kernel/build
tilewise check --plugin my_kernel/build/libmy_kernel.so
# [end commands]
