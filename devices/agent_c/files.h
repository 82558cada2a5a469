/* Small files of /proc and /sys: one value each, or "name: value" lines. */
#ifndef ARCHSEARCH_FILES_H
#define ARCHSEARCH_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PATH_ROOM = 512 };

/* Another machine's files, for tests. */
#ifndef SYS
#define SYS "/sys"
#endif

/* The first line without its line end; false, and an empty text, where it cannot be read. The path is a printf format. */
bool read_line(char *text, size_t room, const char *path, ...) __attribute__((format(printf, 3, 4)));

/* The number a file begins with; NAN where it cannot be read. */
double read_number_of(const char *path, ...) __attribute__((format(printf, 1, 2)));

/* The number behind a name in a file of "name: number" lines; -1 when there is none. `name` includes the colon. */
int64_t read_entry(const char *path, const char *name);

/* Call `visit` for each entry of a folder. */
void for_each_entry(const char *folder, void (*visit)(void *context, const char *name), void *context);

#endif
