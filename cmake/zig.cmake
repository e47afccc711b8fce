# The compiler of the wheels: clang of the ziglang package, which brings its own C and C++ libraries, so that the build is
# the same everywhere and runs on glibc 2.28 and later without a need of the machine's libstdc++. `make build/.dev` builds
# with it too: what the tests load is what is shipped.
# CMake asks for each tool as a program of its own, and ziglang is one with commands.
cmake_path(SET tools NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../build/tools")
cmake_path(SET python NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python")
foreach(tool IN ITEMS cc c++ ar ranlib)
  set(target)
  if(tool MATCHES "^c")
    set(target " -target x86_64-linux-gnu.2.28")
  endif()
  file(CONFIGURE OUTPUT "${tools}/${tool}" CONTENT "#!/bin/sh\nexec ${python} -m ziglang ${tool}${target} \"$@\"\n")
  file(CHMOD "${tools}/${tool}" FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
endforeach()
set(CMAKE_C_COMPILER "${tools}/cc")
set(CMAKE_CXX_COMPILER "${tools}/c++")
set(CMAKE_ASM_COMPILER "${tools}/cc")
set(CMAKE_AR "${tools}/ar")
set(CMAKE_RANLIB "${tools}/ranlib")
