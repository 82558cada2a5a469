/* How much memory this process takes, and whether a model can fit at all. Bytes everywhere; -1 where the kernel does not tell. */
#ifndef ARCHSEARCH_MEMORY_H
#define ARCHSEARCH_MEMORY_H

#include <stdint.h>

#include "failure.h"

int64_t resident_bytes(void);

/* Highest resident set of this process's life. Never reset: the peak while loading is memory a user needs, too. */
int64_t peak_bytes(void);

/* A line of Linux's summary of this process's mappings: "Pss:", "Anonymous:". */
int64_t rollup_bytes(const char *name);

/* Share of this process's anonymous memory in huge pages; NAN where there is too little of it to say anything. */
double huge_page_share(void);

int64_t available_bytes(void);

/* Stop before a model that cannot fit makes the system kill processes, perhaps not this one: false when the model's files (it and its
   external data, named after it) are larger than what is available. */
bool model_fits(const char *model, Failure *failure);

#endif
