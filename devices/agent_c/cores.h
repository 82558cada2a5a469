/* Which cores the agent runs on. */
#ifndef ARCHSEARCH_CORES_H
#define ARCHSEARCH_CORES_H

#include "json.h"

/* Pin the process before the runtime starts its threads: to `cores` or, where NULL, to the fastest for so many threads, each on a
   physical core of its own while they last. Writes the mask as the kernel reports it back, null where there is none. A core that this
   process may not use ends the agent. */
void pin(const int *cores, size_t count, int64_t threads, Line *mask);

#endif
