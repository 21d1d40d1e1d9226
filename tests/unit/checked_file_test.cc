#include "engine/files/checked_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

constexpr size_t kBytesMax = 100;

class TextFile : public testing::Test {
 protected:
  std::string error() {
    return error_of([&] { read_text_file(path_, kBytesMax); });
  }
  const TestDirectory dir_;
  const std::filesystem::path path_ = dir_ / "x";
};

TEST_F(TextFile, IsReadWhole) {
  for (const std::string& text : {std::string(), std::string("a\r\n\xff"), std::string(kBytesMax, 'x')}) {
    write_file(path_, text);
    EXPECT_EQ(read_text_file(path_, kBytesMax), text);
    EXPECT_EQ(read_text_file_if_there(path_, kBytesMax), text);
  }
}

TEST_F(TextFile, IsBoundedAndWithoutZeroBytes) {
  write_file(path_, std::string(kBytesMax + 1, 'x'));
  EXPECT_EQ(error(), path_.string() + ": over 100 bytes");
  write_file(path_, std::string("{}\0{}", 5));
  EXPECT_EQ(error(), path_.string() + ": not text: byte 2 is zero");
}

TEST_F(TextFile, APointerOfGitLfsSaysWhatToDo) {
  write_file(path_, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n");
  EXPECT_THAT(error_of([&] { read_text_file(path_, 1000); }), EndsWith("x: a pointer of Git LFS in place of the file: run `git lfs pull` where it was cloned"));
  write_file(path_, "version https://git-lfs");
  EXPECT_EQ(read_text_file(path_, 1000), "version https://git-lfs");
}

TEST_F(TextFile, MayBeAbsentButNotSomethingElse) {
  EXPECT_EQ(read_text_file_if_there(path_, kBytesMax), std::nullopt);
  EXPECT_THAT(error(), EndsWith("x: cannot open: No such file or directory"));
  const auto refused_both_ways = [&](const char* wanted) {
    EXPECT_THAT(error(), HasSubstr(wanted));
    EXPECT_THAT(error_of([&] { read_text_file_if_there(path_, kBytesMax); }), HasSubstr(wanted));
    std::filesystem::remove(path_);
  };
  std::filesystem::create_directory(path_);
  refused_both_ways("x: not a regular file");
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  refused_both_ways("x: not a regular file");
  std::filesystem::create_symlink("/dev/zero", path_);
  refused_both_ways("x: not a regular file");
  std::filesystem::create_symlink(path_, path_);
  refused_both_ways("x: cannot open: Too many levels");
  std::filesystem::create_symlink("/nonexistent/y", path_);
  refused_both_ways("x: cannot open: No such file");
}

}  // namespace
}  // namespace headroom
