#!/bin/sh
# Runs the compiler it is given, and fails where ptxas notes that it broke up a pipeline of wgmma:
#
#   C7508, C7510-C7515   the instructions wait for each other ("serialized due to ...")
#   C7517, C7519         a wait or a fence of ptxas's own was put between them
#
# To ptxas these are information ("ptxas info    : (C7510) Potential Performance Loss: ..."): neither
# -Werror all-warnings nor -Xptxas --warning-as-error makes them errors (ptxas 13.0.88), and nobody
# reads them in a build that goes well. cmake/TilewiseCuda.cmake puts this before nvcc.
said=$(mktemp) || exit 1
trap 'rm -f "$said"' EXIT
"$@" 2>"$said"
status=$?
cat "$said" >&2
if [ $status -eq 0 ] && grep -Eq '\(C75(08|1[0-9])\)' "$said"; then
  echo "nvcc_launcher.sh: ptxas broke up a pipeline of wgmma (above): counted as an error" >&2
  status=1
  # Without its object, the next build does not take the file for compiled.
  while [ $# -gt 1 ]; do
    [ "$1" = -o ] && rm -f "$2"
    shift
  done
fi
exit $status
