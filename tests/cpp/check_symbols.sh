#!/bin/sh
# check_symbols.sh NM OBJDUMP OBJECTS...: no object compiled for a newer ISA may define a symbol
# that the linker could choose over, or merge with, the one of an object that runs everywhere; and
# the latter must hold no such instruction.
set -u
nm=$1 objdump=$2
shift 2
failed=0
seen=0

fail() {
  echo "FAILED: $*" >&2
  failed=1
}
# Lines of the disassembly with these registers or mnemonics.
count() {
  "$objdump" -d --no-show-raw-insn "$1" | grep -Ec "$2"
}

for object in "$@"; do
  case $object in
    *avx512*) isa=avx512 register='%zmm' ;;
    *avx2*) isa=avx2 register='%ymm' ;;
    *products_bf16*) isa=bf16 register='%zmm' ;;
    *)
      # Every VEX or EVEX instruction begins with v.
      n=$(count "$object" '	v[a-z0-9]+ +')
      [ "$n" = 0 ] || fail "$object holds $n AVX instructions"
      seen=$((seen + 1))
      continue
      ;;
  esac
  seen=$((seen + 100))
  # Every external symbol defined, with its type: weak (W, V), unique (u), indirect (i) or strong.
  symbols=$("$nm" --defined-only --format=posix "$object" | awk '$2 !~ /^[tdrbN]$/ {print $2, $1}')
  own="kernels_$isa"
  [ "$isa" = bf16 ] && own='bf16_products_\(avx512\|amx\)'
  # Of noexcept functions there is a pointer to the C++ library's unwinder too: data, the same in all.
  others=$(echo "$symbols" | grep -v "^T _ZN4dvae3cpu[0-9]*${own}Ev$" | grep -v "isa_$isa" |
    grep -v '^V DW\.ref\.__gxx_personality_v0$')
  [ -z "$others" ] || fail "$object defines symbols outside its ISA's namespace:
$others"
  echo "$symbols" | grep -q "$own" || fail "$object lacks $own()"
  # A call in the loop over a row's elements leaves it scalar, at ten times the cost.
  calls=$("$nm" -C "$object" | grep -c ' [tTwW] .*row_density<.*::{lambda')
  [ "$calls" = 0 ] || fail "$object has $calls functions in the place of loops over rows"
  # The check itself must be able to see what it looks for.
  n=$(count "$object" "$register")
  [ "$n" -gt 100 ] || fail "$object holds only $n instructions on ${register}0 and its like"
done
[ "$seen" -ge 302 ] || fail "expected three objects for newer ISAs and two others, got: $*"
exit $failed
