#!/usr/bin/env bash
# Is the CPU library's binary interface still what it was? Programs that are linked to the shared
# library depend on it: functions and their arguments, structs and where their fields lie, the values
# of constants. tilewise.abi and constants.txt beside this file say what they were.
#
#   tests/abi/abi.sh            compares: 0 the same, 1 not
#   tests/abi/abi.sh --update   writes both files anew
#
# Within one TILEWISE_ABI_VERSION functions and constants may be added and structs may grow at their
# ends. Such an addition fails too, until --update has written it down: from then on it is promised.
# Anything else needs a greater TILEWISE_ABI_VERSION, which is the library's soname. Needs g++ and
# libabigail (Debian: abigail-tools).
set -eu
export LC_ALL=C  # one order of names
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
library=build/abi/cpu/libtilewise.so
dump=tests/abi/tilewise.abi
constants=tests/abi/constants.txt

log=$(mktemp)
trap 'rm -f "$log" "$log".*' EXIT
{ cmake --preset abi --fresh && cmake --build --preset abi; } >"$log" 2>&1 || { cat "$log"; exit 1; }

# NAME = VALUE of the headers' enumerators and versions, which no binary keeps.
constants_of() {
  {
    sed -n 's/^#define \(TILEWISE_[A-Z0-9_]*_VERSION\) \([0-9]*\)$/\1 = \2/p' "$@"
    grep -ohE '\bTILEWISE_[A-Z0-9_]+ = -?[0-9]+' "$@"
  } | sort
}
headers='include/tilewise/tilewise.h include/tilewise/plugin.h'

# Of the library's types those alone that the headers show and the functions reach.
dump_of() {
  abidw --suppressions tests/abi/public.suppr --headers-dir include/tilewise --drop-private-types \
    --exported-interfaces-only --type-id-style hash --no-corpus-path --no-comp-dir-path \
    --no-show-locs --no-elf-needed "$library"
}

if [ "${1:-}" = --update ]; then
  dump_of >"$dump"
  # shellcheck disable=SC2086
  constants_of $headers >"$constants"
  echo "written: $dump, $constants"
  exit 0
fi

dump_of >"$log.abi"
differ=0
abidiff --leaf-changes-only "$dump" "$log.abi" >"$log.report" || differ=1
# shellcheck disable=SC2086
constants_of $headers >"$log.constants"
removed=$(comm -23 "$constants" "$log.constants")
added=$(comm -13 "$constants" "$log.constants")
if [ $differ = 0 ] && [ -z "$removed$added" ]; then
  echo "The interface is the one of $dump."
  exit 0
fi

[ $differ = 0 ] || cat "$log.report"
[ -z "$added" ] || printf 'Constants that were added:\n%s\n' "$added"
[ -z "$removed" ] || printf 'Constants that were removed or had another value:\n%s\n' "$removed"
# What abidiff's report says of anything but functions and fields that are new.
changes="[1-9][0-9]* Removed|, [1-9][0-9]* Changed|deletion|data member change|changed from '"
if [ -n "$removed" ] || grep -qE "$changes" "$log.report"; then
  echo "The interface changed for programs that are linked already. Undo it, or raise"
  echo "TILEWISE_ABI_VERSION in tilewise.h and run tests/abi/abi.sh --update."
else
  echo "The interface grew, and what is new is not written down yet: run tests/abi/abi.sh --update."
fi
exit 1
