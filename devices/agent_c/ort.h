/* The part of ONNX Runtime's C API that the agent uses. The library is opened while the agent runs, so neither its headers nor its
   import library are needed to build.

   OrtApi is a table of function pointers that only ever grows at its end: an entry's ordinal never changes. Those below were there
   in 1.8, and are checked when this is compiled. GetApi answers NULL when the library is older than the version asked for. */
#ifndef ARCHSEARCH_ORT_H
#define ARCHSEARCH_ORT_H

#include <stddef.h>
#include <stdint.h>

/* ONNX Runtime 1.20, the first whose wheels hold the library with this interface. */
enum { ORT_OLDEST_API = 20 };

typedef struct OrtEnv OrtEnv;
typedef struct OrtStatus OrtStatus; /* NULL: all is well */
typedef struct OrtValue OrtValue;
typedef struct OrtSession OrtSession;
typedef struct OrtIoBinding OrtIoBinding;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtAllocator OrtAllocator;

/* Element types by their number in the ONNX format. */
enum {
  ORT_FLOAT = 1,
  ORT_UINT8 = 2,
  ORT_INT8 = 3,
  ORT_UINT16 = 4,
  ORT_INT16 = 5,
  ORT_INT32 = 6,
  ORT_INT64 = 7,
  ORT_BOOL = 9,
  ORT_FLOAT16 = 10,
  ORT_DOUBLE = 11,
  ORT_UINT32 = 12,
  ORT_UINT64 = 13
};
enum { ORT_LOG_ERRORS = 3 };
enum { ORT_SEQUENTIAL = 0 };
enum { ORT_DEVICE_ALLOCATOR = 0, ORT_DEFAULT_MEMORY = 0 };

#define ORT_UNUSED(first, last) void *unused_##first[(last) - (first) + 1]

typedef struct {
  ORT_UNUSED(0, 1);
  const char *(*GetErrorMessage)(const OrtStatus *);
  OrtStatus *(*CreateEnv)(int severity, const char *log_id, OrtEnv **);
  ORT_UNUSED(4, 6);
  OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **);
  OrtStatus *(*CreateSessionFromArray)(const OrtEnv *, const void *model, size_t bytes, const OrtSessionOptions *, OrtSession **);
  ORT_UNUSED(9, 9);
  OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);
  ORT_UNUSED(11, 12);
  OrtStatus *(*SetSessionExecutionMode)(OrtSessionOptions *, int mode);
  ORT_UNUSED(14, 18);
  OrtStatus *(*DisableCpuMemArena)(OrtSessionOptions *);
  ORT_UNUSED(20, 21);
  OrtStatus *(*SetSessionLogSeverityLevel)(OrtSessionOptions *, int severity);
  ORT_UNUSED(23, 23);
  OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int threads);
  OrtStatus *(*SetInterOpNumThreads)(OrtSessionOptions *, int threads);
  ORT_UNUSED(26, 30);
  OrtStatus *(*SessionGetOutputCount)(const OrtSession *, size_t *);
  ORT_UNUSED(32, 36);
  OrtStatus *(*SessionGetOutputName)(const OrtSession *, size_t index, OrtAllocator *, char **name);
  ORT_UNUSED(38, 48);
  OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape, size_t rank,
                                               int type, OrtValue **);
  OrtStatus *(*IsTensor)(const OrtValue *, int *);
  OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);
  ORT_UNUSED(52, 59);
  OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, int *type);
  OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *rank);
  OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *shape, size_t rank);
  ORT_UNUSED(63, 63);
  OrtStatus *(*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo *, size_t *);
  OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *, OrtTensorTypeAndShapeInfo **);
  ORT_UNUSED(66, 68);
  OrtStatus *(*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo **);
  ORT_UNUSED(70, 75);
  OrtStatus *(*AllocatorFree)(OrtAllocator *, void *);
  ORT_UNUSED(77, 77);
  OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **); /* is not to be freed */
  ORT_UNUSED(79, 92);
  void (*ReleaseStatus)(OrtStatus *);
  ORT_UNUSED(94, 94);
  void (*ReleaseSession)(OrtSession *);
  void (*ReleaseValue)(OrtValue *);
  ORT_UNUSED(97, 98);
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *);
  void (*ReleaseSessionOptions)(OrtSessionOptions *);
  ORT_UNUSED(101, 129);
  OrtStatus *(*AddSessionConfigEntry)(OrtSessionOptions *, const char *key, const char *value);
  ORT_UNUSED(131, 132);
  OrtStatus *(*RunWithBinding)(OrtSession *, const void *run_options, const OrtIoBinding *);
  OrtStatus *(*CreateIoBinding)(OrtSession *, OrtIoBinding **);
  void (*ReleaseIoBinding)(OrtIoBinding *);
  OrtStatus *(*BindInput)(OrtIoBinding *, const char *name, const OrtValue *);
  OrtStatus *(*BindOutput)(OrtIoBinding *, const char *name, const OrtValue *);
  OrtStatus *(*BindOutputToDevice)(OrtIoBinding *, const char *name, const OrtMemoryInfo *);
  ORT_UNUSED(139, 139);
  OrtStatus *(*GetBoundOutputValues)(const OrtIoBinding *, OrtAllocator *, OrtValue ***values, size_t *count);
} OrtApi;

#define ORT_ORDINAL(entry, ordinal) _Static_assert(offsetof(OrtApi, entry) == (ordinal) * sizeof(void *), #entry " is misplaced")
ORT_ORDINAL(GetErrorMessage, 2);
ORT_ORDINAL(CreateSession, 7);
ORT_ORDINAL(CreateSessionOptions, 10);
ORT_ORDINAL(SetSessionExecutionMode, 13);
ORT_ORDINAL(DisableCpuMemArena, 19);
ORT_ORDINAL(SetSessionLogSeverityLevel, 22);
ORT_ORDINAL(SetInterOpNumThreads, 25);
ORT_ORDINAL(SessionGetOutputCount, 31);
ORT_ORDINAL(SessionGetOutputName, 37);
ORT_ORDINAL(GetTensorMutableData, 51);
ORT_ORDINAL(GetDimensions, 62);
ORT_ORDINAL(GetTensorTypeAndShape, 65);
ORT_ORDINAL(CreateCpuMemoryInfo, 69);
ORT_ORDINAL(AllocatorFree, 76);
ORT_ORDINAL(GetAllocatorWithDefaultOptions, 78);
ORT_ORDINAL(ReleaseStatus, 93);
ORT_ORDINAL(ReleaseValue, 96);
ORT_ORDINAL(ReleaseSessionOptions, 100);
ORT_ORDINAL(AddSessionConfigEntry, 130);
ORT_ORDINAL(BindOutputToDevice, 138);
ORT_ORDINAL(GetBoundOutputValues, 140);

typedef struct {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

/* The library's only export that the agent looks up. */
typedef const OrtApiBase *(*OrtGetApiBaseFunction)(void);

#endif
