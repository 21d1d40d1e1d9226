# Writes OUT, a C++ source with the bytes of FILES: the table `page_files` of server/dashboard.cc.
set(table "")
foreach(path IN LISTS FILES)
  get_filename_component(name ${path} NAME)
  file(READ ${path} bytes HEX)
  string(REGEX REPLACE "(..)" "\\\\x\\1" text "${bytes}")
  # A literal of its own for every 64 bytes: compilers limit the length of one line less than that of the whole.
  string(LENGTH "${text}" length)
  set(literals "")
  set(at 0)
  while(at LESS length)
    string(SUBSTRING "${text}" ${at} 256 piece)
    string(APPEND literals "\n    \"${piece}\"")
    math(EXPR at "${at} + 256")
  endwhile()
  string(APPEND table "    {\"${name}\", std::string_view(${literals},\n    ${length} / 4)},\n")
endforeach()
file(WRITE ${OUT} "#include \"server/dashboard.h\"\n\nnamespace headroom {\n
std::vector<PageFile> page_files() {\n  return {\n${table}  };\n}\n\n}  // namespace headroom\n")
