# Device code: one code object per source and architecture, embedded in the static library mxort_hip_kernels.
#
# MXORT_HIP=AUTO builds it where a compiler is found and says loudly when there is none; ON makes that an error; OFF
# skips it. The compiler is ROCm's amdclang++ (ROCM_PATH, else /opt/rocm), else Debian's clang-22 with lld-22. No HIP
# header and no device library is used (ep/kernels/hip/prelude.h), so nothing else of ROCm is needed to build.
set(MXORT_HIP AUTO CACHE STRING "GPU kernels: AUTO, ON or OFF")
set_property(CACHE MXORT_HIP PROPERTY STRINGS AUTO ON OFF)
set(MXORT_HIP_ARCHITECTURES gfx950 gfx942 CACHE STRING "GPU architectures to compile for")
set(MXORT_HIP_OBJECTS "" CACHE PATH "Folder of <source>.<arch>.co that another build compiled, to embed as they are")

set(MXORT_HAVE_HIP OFF)
if(MXORT_HIP_OBJECTS)
  set(MXORT_HAVE_HIP ON)
elseif(NOT MXORT_HIP STREQUAL OFF)
  set(rocm "$ENV{ROCM_PATH}")
  if(NOT rocm)
    set(rocm /opt/rocm)
  endif()
  find_program(MXORT_HIP_COMPILER NAMES amdclang++ PATHS "${rocm}/bin" "${rocm}/llvm/bin" NO_DEFAULT_PATH)
  if(NOT MXORT_HIP_COMPILER)
    find_program(lld_22 ld.lld-22)
    find_program(MXORT_CLANG_22 NAMES clang++-22 clang-22)
    if(MXORT_CLANG_22 AND lld_22)
      set(MXORT_HIP_COMPILER "${MXORT_CLANG_22}" CACHE FILEPATH "Compiler of the GPU kernels" FORCE)
    endif()
  endif()
  if(MXORT_HIP_COMPILER)
    set(MXORT_HAVE_HIP ON)
  elseif(MXORT_HIP STREQUAL ON)
    message(FATAL_ERROR "MXORT_HIP=ON, but no compiler for GPU kernels was found: install ROCm (and set ROCM_PATH), "
                        "or clang-22 and lld-22")
  else()
    message(WARNING "No compiler for GPU kernels was found (ROCm's amdclang++, or clang-22 with lld-22): "
                    "the library will have NO GPU KERNELS. Install one, or say -DMXORT_HIP=OFF to silence this.")
  endif()
endif()

set(sources ep/kernels/hip/select.cc ep/kernels/hip/select_experts.cc ep/kernels/hip/preshuffle.cc ep/kernels/hip/code_objects.cc)
add_library(mxort_hip_kernels STATIC ${sources})
target_link_libraries(mxort_hip_kernels PUBLIC mxort_kernels)

set(assembly "")
set(rows "")
if(MXORT_HAVE_HIP)
  enable_language(ASM)
  set(device_dir "${CMAKE_CURRENT_SOURCE_DIR}/ep/kernels/hip")
  file(GLOB device_headers CONFIGURE_DEPENDS "${device_dir}/*.h")
  list(APPEND device_headers "${CMAKE_CURRENT_SOURCE_DIR}/ep/mx_formats.h")
  # Contraction would fuse the operator's fixed arithmetic. Version 5 loads in every ROCm 6 and 7.
  set(device_flags -x hip --cuda-device-only --no-gpu-bundle-output -O3 -std=c++17 -ffp-contract=off -Wall -Wextra
                   -nogpuinc -nogpulib -mcode-object-version=5 "-I${CMAKE_CURRENT_SOURCE_DIR}/ep")
  if(MXORT_HIP_COMPILER MATCHES "clang[+]*-22$") # the compiler of CI: another one may warn of something else
    list(APPEND device_flags -Werror)
  endif()
  foreach(arch IN LISTS MXORT_HIP_ARCHITECTURES)
    set(names attention attention_append attention_mx attention_prefill experts experts_bf16 gather_mx gemm_bf16
              gemm_byte gemm_direct pointwise prepare product rows strided)
    if(arch STREQUAL gfx950)
      list(PREPEND names gemm_mx experts_mx)
    endif()
    foreach(name IN LISTS names)
      if(MXORT_HIP_OBJECTS)
        set(object "${MXORT_HIP_OBJECTS}/${name}.${arch}.co")
        if(NOT EXISTS "${object}")
          message(FATAL_ERROR "MXORT_HIP_OBJECTS: ${object}: no such file")
        endif()
      else()
        set(object "${CMAKE_CURRENT_BINARY_DIR}/hip/${name}.${arch}.co")
        add_custom_command(
          OUTPUT "${object}"
          COMMAND ${CMAKE_COMMAND} -E make_directory "${CMAKE_CURRENT_BINARY_DIR}/hip"
          COMMAND "${MXORT_HIP_COMPILER}" ${device_flags} --offload-arch=${arch} "${device_dir}/${name}.hip" -o "${object}"
          DEPENDS "${device_dir}/${name}.hip" ${device_headers}
          COMMENT "GPU kernels: ${name} for ${arch}"
          VERBATIM)
      endif()
      set(symbol "mxort_co_${name}_${arch}")
      set(stub "${CMAKE_CURRENT_BINARY_DIR}/hip/${name}.${arch}.S")
      file(CONFIGURE OUTPUT "${stub}" CONTENT
"  .section .rodata
  .balign 4096
  .globl @symbol@
  .hidden @symbol@
  .type @symbol@, %object
@symbol@:
  .incbin \"@object@\"
  .globl @symbol@_end
  .hidden @symbol@_end
@symbol@_end:
  .section .note.GNU-stack, \"\", %progbits
" @ONLY)
      set_source_files_properties("${stub}" PROPERTIES OBJECT_DEPENDS "${object}")
      list(APPEND assembly "${stub}")
      string(APPEND rows "MXORT_CODE_OBJECT(${name}, ${arch})\n")
    endforeach()
  endforeach()
  target_sources(mxort_hip_kernels PRIVATE ${assembly})
  message(STATUS "GPU kernels: ${MXORT_HIP_ARCHITECTURES} from ${MXORT_HIP_COMPILER}${MXORT_HIP_OBJECTS}")
endif()
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/hip/code_objects.inc" CONTENT "${rows}" @ONLY)
target_include_directories(mxort_hip_kernels PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/hip")
