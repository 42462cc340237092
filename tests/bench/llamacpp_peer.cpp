// How fast is llama.cpp itself? Loads a model once, then answers one command a line with one line of JSON.
//
//   peer MODEL THREADS default|mapped|layers=N|cpu-experts=N
//       decode SEQUENCES TOKENS    a short prompt each, then TOKENS greedy steps of SEQUENCES rows, all timed
//                                  but the first
//       prefill TOKENS             one prompt, in batches of 512
//       forced warm|cold FILE      a step for every token id of FILE, whatever would follow: a sequence a line, all as
//                                  long; all timed but the first step
//       forced_prefill warm|cold FILE   the ids of FILE, one line, as one prompt, in batches of 512
//
// `default` leaves loading to llama.cpp, which copies weights into the layout of its fastest kernels; `mapped` maps the
// file and computes from it, so that the kernel may drop weights and read them again. Of a llama.cpp with a card, N
// layers are in its memory with `layers`, the others for the processor; with `cpu-experts` the experts of the first N
// layers are the processor's, and all else is in the card's memory. A context is warm when it has run
// its command once before the run that is timed; every one is, but where `cold` is asked. Such a one has computed the
// first token of each sequence: threads run, and what all tokens need is in memory, as far as there is room. What is
// not set here is llama.cpp's default: flash attention, KV F16.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

constexpr int kBatch = 512;
constexpr int kPrompt = 3;
constexpr int kMostSequences = 64;
constexpr int kMostPrompt = 8192;
constexpr int kStride = 4999;  // between the tokens of a long prompt, so that they differ

using Clock = std::chrono::steady_clock;

using Ids = std::vector<std::vector<llama_token>>;  // by sequence

struct Command {
    std::string name;
    int sequences = 1;
    int tokens = 0;
    bool cold = false;
    Ids forced;

    bool same_context(const Command & other) const {
        return name == other.name && sequences == other.sequences && tokens == other.tokens;
    }
};

struct Timing {
    int tokens;
    double seconds;
};

struct FreeModel { void operator()(llama_model * model) const { llama_model_free(model); } };
struct FreeContext { void operator()(llama_context * context) const { llama_free(context); } };
using Model = std::unique_ptr<llama_model, FreeModel>;
using Context = std::unique_ptr<llama_context, FreeContext>;

// The rows of one llama_decode.
class Batch {
public:
    explicit Batch(int rows) : batch_(llama_batch_init(rows, 0, 1)) {}
    ~Batch() { llama_batch_free(batch_); }
    Batch(const Batch &) = delete;
    Batch & operator=(const Batch &) = delete;

    void clear() { batch_.n_tokens = 0; }

    void add(llama_token token, int position, int sequence, bool output) {
        const int row = batch_.n_tokens++;
        batch_.token[row] = token;
        batch_.pos[row] = position;
        batch_.n_seq_id[row] = 1;
        batch_.seq_id[row][0] = sequence;
        batch_.logits[row] = output;
    }

    void decode(llama_context * context) const {
        const int status = llama_decode(context, batch_);
        if (status != 0) throw std::runtime_error("llama_decode: status " + std::to_string(status));
    }

private:
    llama_batch batch_;
};

llama_token likeliest(const float * logits, int vocabulary) {
    return static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
}

double since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Where weights are to lie.
struct Weights {
    bool mapped = false;
    int layers = -1;       // in a card's memory; -1 for all
    int host_experts = 0;  // layers whose experts are the processor's
};

class Peer {
public:
    Peer(const std::string & path, int threads, const Weights & weights) : threads_(threads) {
        llama_model_params params = llama_model_default_params();
        if (weights.mapped) {
            params.load_mode = LLAMA_LOAD_MODE_MMAP;
            params.use_extra_bufts = false;
        }
        if (weights.layers >= 0) params.n_gpu_layers = weights.layers;
        std::vector<std::string> patterns;
        for (int layer = 0; layer < weights.host_experts; ++layer) {
            patterns.push_back("blk\\." + std::to_string(layer) + "\\.ffn_(up|down|gate_up|gate)_(ch|)exps");
        }
        std::vector<llama_model_tensor_buft_override> overrides;
        for (const std::string & pattern : patterns) {
            overrides.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
        }
        overrides.push_back({nullptr, nullptr});
        if (weights.host_experts > 0) params.tensor_buft_overrides = overrides.data();
        model_.reset(llama_model_load_from_file(path.c_str(), params));
        if (!model_) throw std::runtime_error("llama.cpp does not load " + path);
        vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    }

    Timing run(const Command & command) {
        if (!context_ || command.cold || !command.same_context(last_)) {
            make_context(command);
            warm_up(command);
        }
        return once(command);
    }

private:
    void make_context(const Command & command) {
        context_.reset();
        llama_context_params params = llama_context_default_params();
        params.n_ctx = command.sequences * (kPrompt + command.tokens + 1);
        params.n_batch = kBatch;
        params.n_ubatch = kBatch;
        params.n_seq_max = command.sequences;
        params.n_threads = threads_;
        params.n_threads_batch = threads_;
        context_.reset(llama_init_from_model(model_.get(), params));
        if (!context_) throw std::runtime_error("llama.cpp makes no context");
        last_ = command;
    }

    Timing once(const Command & command) {
        llama_memory_clear(llama_get_memory(context_.get()), true);
        if (command.name == "forced") return forced(command.forced);
        if (command.name == "forced_prefill") return forced_prefill(command.forced.front());
        return command.name == "decode" ? decode(command.sequences, command.tokens) : prefill(command.tokens);
    }

    Timing decode(int sequences, int tokens) {
        Batch batch(sequences * kPrompt);
        std::vector<llama_token> next(sequences);
        for (int sequence = 0; sequence < sequences; ++sequence) {
            for (int i = 0; i < kPrompt; ++i) batch.add(i == 0 ? sequence + 1 : i + 1, i, sequence, i == kPrompt - 1);
        }
        batch.decode(context_.get());
        choose(next, kPrompt);
        Clock::time_point start;
        for (int step = 0; step < tokens; ++step) {
            if (step == 1) start = Clock::now();
            batch.clear();
            for (int sequence = 0; sequence < sequences; ++sequence) {
                batch.add(next[sequence], kPrompt + step, sequence, true);
            }
            batch.decode(context_.get());
            choose(next, 1);
        }
        return {sequences * (tokens - 1), since(start)};
    }

    void warm_up(const Command & command) {
        if (!command.cold) {
            once(command);
            return;
        }
        Batch batch(command.sequences);
        forced_step(batch, command.forced, 0);
    }

    void forced_step(Batch & batch, const Ids & ids, int step) {
        batch.clear();
        for (size_t sequence = 0; sequence < ids.size(); ++sequence) {
            batch.add(ids[sequence][step], step, static_cast<int>(sequence), true);
        }
        batch.decode(context_.get());
        // Chosen as if it were to follow: that is a part of a step.
        std::vector<llama_token> next(ids.size());
        choose(next, 1);
    }

    Timing forced(const Ids & ids) {
        const int sequences = static_cast<int>(ids.size()), steps = static_cast<int>(ids.front().size());
        Batch batch(sequences);
        forced_step(batch, ids, 0);
        const Clock::time_point start = Clock::now();
        for (int step = 1; step < steps; ++step) forced_step(batch, ids, step);
        return {sequences * (steps - 1), since(start)};
    }

    Timing forced_prefill(const std::vector<llama_token> & ids) {
        const int tokens = static_cast<int>(ids.size());
        Batch batch(std::min(tokens, kBatch));
        const Clock::time_point start = Clock::now();
        for (int first = 0, end = 0; first < tokens; first = end) {
            end = std::min(tokens, first + kBatch);
            batch.clear();
            for (int i = first; i < end; ++i) batch.add(ids[i], i, 0, i == tokens - 1);
            batch.decode(context_.get());
        }
        likeliest(llama_get_logits_ith(context_.get(), (tokens - 1) % kBatch), vocabulary_);
        return {tokens, since(start)};
    }

    // The next token of every sequence; its last row is every `stride`-th of the batch.
    void choose(std::vector<llama_token> & next, int stride) const {
        for (size_t sequence = 0; sequence < next.size(); ++sequence) {
            const int row = static_cast<int>(sequence + 1) * stride - 1;
            next[sequence] = likeliest(llama_get_logits_ith(context_.get(), row), vocabulary_);
        }
    }

    Timing prefill(int tokens) {
        std::vector<llama_token> ids(tokens);
        for (int i = 0; i < tokens; ++i) ids[i] = (i * kStride + 1) % vocabulary_;
        return forced_prefill(ids);
    }

    int threads_;
    int vocabulary_ = 0;
    Model model_;
    Context context_;
    Command last_;
};

Ids read_ids(const std::string & path) {
    std::ifstream file(path);
    Ids ids;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        ids.emplace_back();
        for (llama_token id; words >> id;) ids.back().push_back(id);
        if (ids.back().size() != ids.front().size()) throw std::runtime_error("lines are not as long: " + path);
    }
    if (ids.empty() || ids.front().empty()) throw std::runtime_error("no token ids: " + path);
    return ids;
}

Command parse_forced(const std::string & name, std::istringstream & words) {
    Command command;
    std::string heat, path;
    words >> heat >> std::ws;
    std::getline(words, path);
    if (heat != "warm" && heat != "cold") throw std::runtime_error("not a command: " + name + " warm|cold FILE");
    command.name = name;
    command.cold = heat == "cold";
    command.forced = read_ids(path);
    command.sequences = static_cast<int>(command.forced.size());
    command.tokens = static_cast<int>(command.forced.front().size());
    const bool decode = name == "forced" && command.tokens >= 2 && command.sequences <= kMostSequences;
    const bool prefill = name == "forced_prefill" && command.sequences == 1 && command.tokens <= kMostPrompt;
    if (!decode && !prefill) throw std::runtime_error("too many or too few token ids: " + path);
    return command;
}

Command parse(const std::string & line) {
    std::istringstream words(line);
    Command command;
    words >> command.name;
    if (command.name == "forced" || command.name == "forced_prefill") return parse_forced(command.name, words);
    if (command.name == "decode") words >> command.sequences;
    words >> command.tokens;
    const bool decode = command.name == "decode" && command.tokens >= 2;
    const bool prefill = command.name == "prefill" && command.tokens >= 1 && command.tokens <= kMostPrompt;
    if (!words || !(decode || prefill) || command.sequences < 1 || command.sequences > kMostSequences) {
        throw std::runtime_error("not a command: decode SEQUENCES TOKENS, prefill TOKENS, forced, forced_prefill");
    }
    return command;
}

void answer(Peer & peer) {
    for (std::string line; std::getline(std::cin, line);) {
        const Timing timing = peer.run(parse(line));
        std::printf("{\"tokens\": %d, \"seconds\": %.6f}\n", timing.tokens, timing.seconds);
        std::fflush(stdout);
    }
}

Weights parse_weights(const std::string & mode) {
    Weights weights;
    const size_t equals = mode.find('=');
    const std::string name = mode.substr(0, equals);
    if (equals == std::string::npos) {
        weights.mapped = name == "mapped";
        if (name == "mapped" || name == "default") return weights;
    } else {
        const int number = std::stoi(mode.substr(equals + 1));
        if (name == "layers") weights.layers = number;
        if (name == "cpu-experts") weights.host_experts = number;
        if (number >= 0 && (name == "layers" || name == "cpu-experts")) return weights;
    }
    throw std::runtime_error("usage: peer MODEL THREADS default|mapped|layers=N|cpu-experts=N");
}

}  // namespace

int main(int count, char ** arguments) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    try {
        const Weights weights = parse_weights(count == 4 ? arguments[3] : "");
        Peer peer(arguments[1], std::stoi(arguments[2]), weights);
        std::printf("{\"system\": \"%s\"}\n", llama_print_system_info());
        std::fflush(stdout);
        answer(peer);
    } catch (const std::exception & error) {
        std::cerr << "peer: " << error.what() << "\n";
        return 1;
    }
    return 0;
}
