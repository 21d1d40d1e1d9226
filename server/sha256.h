// SHA-256 (FIPS 180-4). Used to keep and compare API keys by digest, so that neither a log nor a core file of the options holds a key.
#pragma once

#include <string>
#include <string_view>

namespace headroom {

std::string sha256_hex(std::string_view bytes);  // 64 lower-case digits

// Equal or not, in a time that depends on the lengths alone.
bool equal_in_constant_time(std::string_view a, std::string_view b);

}  // namespace headroom
