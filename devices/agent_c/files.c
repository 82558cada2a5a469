#define _GNU_SOURCE
#include "files.h"

#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool read_line_of(char *text, size_t room, const char *path) {
  *text = '\0';
  FILE *file = fopen(path, "re");
  if (!file) return false;
  bool read = fgets(text, (int)room, file) != NULL;
  fclose(file);
  text[strcspn(text, "\n")] = '\0';
  return read;
}

bool read_line(char *text, size_t room, const char *path, ...) {
  char full[PATH_ROOM];
  va_list arguments;
  va_start(arguments, path);
  vsnprintf(full, sizeof full, path, arguments);
  va_end(arguments);
  return read_line_of(text, room, full);
}

double read_number_of(const char *path, ...) {
  char full[PATH_ROOM], text[64], *end;
  va_list arguments;
  va_start(arguments, path);
  vsnprintf(full, sizeof full, path, arguments);
  va_end(arguments);
  if (!read_line_of(text, sizeof text, full)) return NAN;
  double number = strtod(text, &end);
  return end == text ? NAN : number;
}

int64_t read_entry(const char *path, const char *name) {
  char line[256];
  int64_t number = -1;
  FILE *file = fopen(path, "re");
  if (!file) return -1;
  while (number < 0 && fgets(line, sizeof line, file))
    if (strncmp(line, name, strlen(name)) == 0) number = strtoll(line + strlen(name), NULL, 10);
  fclose(file);
  return number;
}

void for_each_entry(const char *folder, void (*visit)(void *context, const char *name), void *context) {
  DIR *directory = opendir(folder);
  if (!directory) return;
  for (struct dirent *entry; (entry = readdir(directory));)
    if (entry->d_name[0] != '.') visit(context, entry->d_name);
  closedir(directory);
}
