// The opcode tables, one per unit. Every entry maps a mnemonic (without _e32, _e64, _dpp, _sdwa) to its meaning.
#pragma once

#include <cstddef>

#include "sim.h"

namespace hipsim {

struct OpTable {
  const OpEntry* begin;
  size_t count;
};

OpTable salu_ops();
OpTable valu_int_ops();
OpTable valu_float_ops();
OpTable valu_convert_ops();
OpTable valu_cross_ops();
OpTable vmem_ops();
OpTable lds_ops();
OpTable mfma_ops();

}  // namespace hipsim
