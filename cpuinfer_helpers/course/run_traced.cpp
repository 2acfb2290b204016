// Run a TorchScript module in a process that has no Python in it.
//
//   run_traced MODULE INPUTS CALLS THREADS
//
// Ends with 2 and one line on standard error if its arguments cannot be used, with 1 if anything else fails.
//
// INPUTS is a text file with one tensor a line: name, number of dimensions, sizes, then the integers.
// Prints one line for each output in the same form, one line "seconds" with the time of each call, and one line
// "libraries" with what is loaded into this process, as Linux tells it.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>

using Inputs = std::unordered_map<std::string, c10::IValue>;

Inputs read_inputs(const std::string& path) {
  std::ifstream file(path);
  Inputs inputs;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t dimensions = 0;
    words >> name >> dimensions;
    std::vector<int64_t> sizes(dimensions), values;
    for (auto& size : sizes) words >> size;
    for (int64_t value; words >> value;) values.push_back(value);
    inputs[name] = at::from_blob(values.data(), sizes, at::kLong).clone();
  }
  return inputs;
}

void print(const std::string& name, const at::Tensor& tensor) {
  std::cout << name << " " << tensor.dim();
  for (auto size : tensor.sizes()) std::cout << " " << size;
  const auto values = tensor.to(at::kFloat).contiguous();
  for (int64_t i = 0; i < values.numel(); ++i) std::cout << " " << values.data_ptr<float>()[i];
  std::cout << "\n";
}

std::set<std::string> loaded_libraries() {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> names;
  for (std::string line; std::getline(maps, line);) {
    const auto name = line.substr(line.find_last_of('/') + 1);
    if (line.find('/') != std::string::npos && name.find(".so") != std::string::npos) names.insert(name);
  }
  return names;
}

struct UsageError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

int whole_number(const std::string& name, std::string_view text, int most) {
  int value = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (error != std::errc() || end != last || value < 1 || value > most) {
    throw UsageError(name + " is '" + std::string(text) + "'; give a whole number of at least 1, and at most " +
                     std::to_string(most) + " here");
  }
  return value;
}

// As cpuinfer_helpers.machine.most_threads.
int most_threads() { return std::max(256, 4 * static_cast<int>(std::thread::hardware_concurrency())); }

int main(int argc, char** argv) try {
  if (argc != 5) throw UsageError("usage: run_traced MODULE INPUTS CALLS THREADS");
  const int calls = whole_number("CALLS", argv[3], 1'000'000'000);
  at::set_num_threads(whole_number("THREADS", argv[4], most_threads()));
  const c10::InferenceMode no_gradients;
  auto module = torch::jit::load(argv[1]);
  const auto inputs = read_inputs(argv[2]);
  c10::IValue output;
  std::vector<double> seconds;
  for (int call = 0; call < calls; ++call) {
    const auto start = std::chrono::steady_clock::now();
    output = module.forward({}, inputs);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::cout.precision(9);
  for (const auto& entry : output.toGenericDict()) print(entry.key().toStringRef(), entry.value().toTensor());
  std::cout << "seconds";
  for (double value : seconds) std::cout << " " << value;
  std::cout << "\nlibraries";
  for (const auto& name : loaded_libraries()) std::cout << " " << name;
  std::cout << std::endl;
  return 0;
} catch (const UsageError& error) {
  std::cerr << "run_traced: " << error.what() << std::endl;
  return 2;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
