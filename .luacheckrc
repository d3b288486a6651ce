-- Settings of luacheck for the scripts that Redis runs (Lua 5.1, without its libraries for files and processes).
std = {
  read_globals = {
    "redis", "cjson", "struct", "bit", "KEYS", "ARGV",
    "assert", "error", "ipairs", "math", "next", "pairs", "pcall", "select", "string", "table", "tonumber", "tostring",
    "type", "unpack",
  },
}
max_line_length = 120
ignore = {"581"} -- `not (value > 0)` holds for NaN, too, which `value <= 0` does not
