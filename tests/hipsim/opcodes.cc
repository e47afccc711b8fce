#include "opcodes.h"

#include <unordered_map>

namespace hipsim {
namespace {

const std::unordered_map<std::string, const OpEntry*>& table() {
  static const auto* map = [] {
    auto* m = new std::unordered_map<std::string, const OpEntry*>;
    for (OpTable t : {salu_ops(), valu_int_ops(), valu_float_ops(), valu_convert_ops(), valu_cross_ops(), vmem_ops(),
                      lds_ops(), mfma_ops()})
      for (size_t k = 0; k < t.count; k++)
        if (!m->emplace(t.begin[k].name, &t.begin[k]).second) fail("opcode %s is in two tables", t.begin[k].name);
    return m;
  }();
  return *map;
}

}  // namespace

const OpEntry* find_op(const std::string& name) {
  auto it = table().find(name);
  return it == table().end() ? nullptr : it->second;
}

int op_count() { return static_cast<int>(table().size()); }

}  // namespace hipsim
