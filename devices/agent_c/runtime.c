#include "runtime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

bool ort_ok(const Runtime *runtime, OrtStatus *status, Failure *failure) {
  if (!status) return true;
  failed(failure, "%s", runtime->api->GetErrorMessage(status));
  runtime->api->ReleaseStatus(status);
  return false;
}

bool runtime_open(Runtime *runtime, const char *path, Failure *failure) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return failed(failure, "ONNX Runtime cannot be opened: %s", dlerror());
  OrtGetApiBaseFunction get_base = NULL;
  void *symbol = dlsym(library, "OrtGetApiBase");
  memcpy(&get_base, &symbol, sizeof get_base); /* ISO C has no cast between pointers to data and to functions */
  if (!get_base) return failed(failure, "%s is no ONNX Runtime: it lacks OrtGetApiBase", path);
  const OrtApiBase *base = get_base();
  const char *version = base->GetVersionString();
  runtime->api = base->GetApi(ORT_OLDEST_API);
  if (!runtime->api) return failed(failure, "ONNX Runtime %s is too old; the agent needs 1.%d or newer", version, ORT_OLDEST_API);
  snprintf(runtime->name, sizeof runtime->name, "onnxruntime %s CPUExecutionProvider", version);
  const OrtApi *api = runtime->api;
  return ort_ok(runtime, api->CreateEnv(ORT_LOG_ERRORS, "archsearch", &runtime->env), failure) &&
         ort_ok(runtime, api->CreateCpuMemoryInfo(ORT_DEVICE_ALLOCATOR, ORT_DEFAULT_MEMORY, &runtime->cpu), failure) &&
         ort_ok(runtime, api->GetAllocatorWithDefaultOptions(&runtime->allocator), failure);
}

OrtSession *runtime_load(const Runtime *runtime, const Plan *plan, const char *path, const void *model, size_t bytes, Failure *failure) {
  const OrtApi *api = runtime->api;
  OrtSessionOptions *options = NULL;
  OrtSession *session = NULL;
  const char *spinning = plan->allow_spinning ? "1" : "0";
  if (!ort_ok(runtime, api->CreateSessionOptions(&options), failure)) return NULL;
  bool loaded = ort_ok(runtime, api->SetIntraOpNumThreads(options, (int)plan->threads), failure) &&
                ort_ok(runtime, api->SetInterOpNumThreads(options, 1), failure) &&
                ort_ok(runtime, api->SetSessionExecutionMode(options, ORT_SEQUENTIAL), failure) &&
                (plan->memory_arena || ort_ok(runtime, api->DisableCpuMemArena(options), failure)) &&
                ort_ok(runtime, api->SetSessionLogSeverityLevel(options, ORT_LOG_ERRORS), failure) &&
                ort_ok(runtime, api->AddSessionConfigEntry(options, "session.intra_op.allow_spinning", spinning), failure) &&
                ort_ok(runtime,
                       model ? api->CreateSessionFromArray(runtime->env, model, bytes, options, &session)
                             : api->CreateSession(runtime->env, path, options, &session),
                       failure);
  api->ReleaseSessionOptions(options);
  return loaded ? session : NULL;
}

static const struct {
  const char *dtype;
  int type;
  size_t bytes;
} types[] = {
    {"float32", ORT_FLOAT, 4}, {"float16", ORT_FLOAT16, 2}, {"float64", ORT_DOUBLE, 8}, {"int64", ORT_INT64, 8},
    {"int32", ORT_INT32, 4},   {"int16", ORT_INT16, 2},     {"int8", ORT_INT8, 1},      {"uint64", ORT_UINT64, 8},
    {"uint32", ORT_UINT32, 4}, {"uint16", ORT_UINT16, 2},   {"uint8", ORT_UINT8, 1},    {"bool", ORT_BOOL, 1},
};

int element_type(const char *dtype) {
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (strcmp(types[i].dtype, dtype) == 0) return types[i].type;
  return 0;
}

size_t element_bytes(int type) {
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (types[i].type == type) return types[i].bytes;
  return 0;
}
