#define _GNU_SOURCE
#include "machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "memory.h"

#define CPU SYS "/devices/system/cpu/cpu%d"

/* As in devices/health.py, where they are explained. */
static const double BUSY_SHARE = 0.1, LOOK_EVERY_S = 0.25, SHORTEST_SPAN_S = 0.1;

static double seconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* -- sensors, looked for once ------------------------------------------------------------------------------------------ */

static void keep(Sensors *sensors, const char *format, const char *entry) {
  if (sensors->count < MOST_SENSORS) snprintf(sensors->paths[sensors->count++], SENSOR_ROOM, format, entry);
}

static void find_hwmon(void *context, const char *entry) {
  static const char *const chips[] = {"coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz"};
  char name[64], path[SENSOR_ROOM];
  read_line(name, sizeof name, SYS "/class/hwmon/%s/name", entry);
  for (size_t i = 0; i < sizeof chips / sizeof *chips; i++)
    for (int n = 1; n <= 32 && strcmp(name, chips[i]) == 0; n++) {
      snprintf(path, sizeof path, SYS "/class/hwmon/%.40s/temp%d_input", entry, n);
      if (!isnan(read_number_of("%s", path))) keep(context, "%s", path);
    }
}

/* Thermal zones that tell of the CPU, by the names that kernels and phones' makers give them. */
static void find_zone(void *context, const char *entry) {
  static const char *const words[] = {"cpu", "soc", "big", "mid", "little", "x86_pkg_temp", "acpitz"};
  char type[64];
  if (strncmp(entry, "thermal_zone", 12) != 0) return;
  read_line(type, sizeof type, SYS "/class/thermal/%s/type", entry);
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (i < 2 ? strcasestr(type, words[i]) != NULL : strcasecmp(type, words[i]) == 0) {
      keep(context, SYS "/class/thermal/%.40s/temp", entry);
      return;
    }
}

static void find_cooler(void *context, const char *entry) {
  char type[64];
  if (strncmp(entry, "cooling_device", 14) != 0) return;
  read_line(type, sizeof type, SYS "/class/thermal/%s/type", entry);
  if (strstr(type, "cpufreq") || strcmp(type, "Processor") == 0) keep(context, SYS "/class/thermal/%.40s/cur_state", entry);
}

/* -- single readings ----------------------------------------------------------------------------------------------------- */

static double hottest(const Sensors *sensors) {
  double highest = NAN;
  for (int i = 0; i < sensors->count; i++) {
    double value = read_number_of("%s", sensors->paths[i]);
    if (value >= 1000) value /= 1000; /* some phones tell whole degrees */
    if (value > 0 && value < 150 && !(value <= highest)) highest = value;
  }
  return highest;
}

static int any_cooling(const Sensors *sensors) {
  int cooling = -1;
  for (int i = 0; i < sensors->count; i++) {
    double state = read_number_of("%s", sensors->paths[i]);
    if (!isnan(state)) cooling = cooling > 0 || state > 0;
  }
  return cooling;
}

/* A clock of every core in MHz from its cpufreq file; 0 for a core that is off. None when no core tells. */
static int read_clocks(double *mhz, const char *file) {
  long cores = sysconf(_SC_NPROCESSORS_CONF);
  bool any = false;
  int count = 0;
  for (; count < cores && count < MOST_CORES; count++) {
    double khz = read_number_of(CPU "/cpufreq/%s", count, file);
    any |= !isnan(khz);
    mhz[count] = isnan(khz) ? 0 : khz / 1000;
  }
  return any ? count : 0;
}

/* Where there is no cpufreq, as in virtual machines. */
static int read_cpuinfo_clocks(double *mhz) {
  char line[256];
  int count = 0;
  FILE *file = fopen("/proc/cpuinfo", "re");
  while (file && count < MOST_CORES && fgets(line, sizeof line, file)) {
    const char *colon = strchr(line, ':');
    if (strncasecmp(line, "cpu MHz", 7) == 0 && colon) mhz[count++] = strtod(colon + 1, NULL);
  }
  if (file) fclose(file);
  return count;
}

/* Seconds that all cores were busy since boot, and the ticks a hypervisor took; NAN and -1 where /proc/stat is not to be read. */
static double busy_seconds(int64_t *steal_ticks) {
  char line[512];
  unsigned long long user, nice, system, idle, iowait, irq, softirq, steal = 0;
  *steal_ticks = -1;
  if (!read_line(line, sizeof line, "/proc/stat")) return NAN;
  int read = sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal);
  if (read < 7) return NAN;
  *steal_ticks = (int64_t)steal;
  return (double)(user + nice + system + irq + softirq + steal) / (double)sysconf(_SC_CLK_TCK);
}

static double own_seconds(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Involuntary context switches of all threads since the agent began. */
static int64_t preemptions(void) {
  struct rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_nivcsw : -1;
}

/* Bytes swapped in and out since boot. */
static int64_t swapped_bytes(void) {
  char line[128];
  unsigned long long pages, sum = 0;
  int found = 0;
  FILE *file = fopen("/proc/vmstat", "re");
  while (file && found < 2 && fgets(line, sizeof line, file))
    if (sscanf(line, "pswpin %llu", &pages) == 1 || sscanf(line, "pswpout %llu", &pages) == 1) {
      sum += pages;
      found++;
    }
  if (file) fclose(file);
  return found ? (int64_t)sum * sysconf(_SC_PAGESIZE) : -1;
}

static void find_battery(void *context, const char *entry) {
  int *on_battery = context;
  char type[32], scope[32], status[32];
  read_line(type, sizeof type, SYS "/class/power_supply/%s/type", entry);
  read_line(scope, sizeof scope, SYS "/class/power_supply/%s/scope", entry); /* "Device": a mouse's */
  read_line(status, sizeof status, SYS "/class/power_supply/%s/status", entry);
  if (strcmp(type, "Battery") != 0 || strcmp(scope, "Device") == 0) return;
  if (strcmp(status, "Discharging") == 0) *on_battery = 1;
  if (*on_battery < 0 && *status && strcmp(status, "Unknown") != 0) *on_battery = 0;
}

/* -- looks --------------------------------------------------------------------------------------------------------------- */

void watch_begin(Watch *watch) {
  int64_t steal;
  *watch = (Watch){.share = NAN, .huge_page_share = NAN};
  for_each_entry(SYS "/class/hwmon", find_hwmon, &watch->temperatures);
  if (watch->temperatures.count == 0) for_each_entry(SYS "/class/thermal", find_zone, &watch->temperatures);
  for_each_entry(SYS "/class/thermal", find_cooler, &watch->coolers);
  watch->last_s = seconds(CLOCK_MONOTONIC);
  watch->last_busy_s = busy_seconds(&steal);
  watch->last_own_s = own_seconds();
}

void watch_look(Watch *watch, MachineState *state) {
  double now_s = seconds(CLOCK_MONOTONIC), busy_s = busy_seconds(&state->steal_ticks), own_s = own_seconds();
  double elapsed_s = now_s - watch->last_s;
  if (elapsed_s >= SHORTEST_SPAN_S) {
    double capacity_s = elapsed_s * (double)sysconf(_SC_NPROCESSORS_ONLN);
    double share = (busy_s - watch->last_busy_s - (own_s - watch->last_own_s)) / capacity_s;
    watch->share = isnan(share) ? NAN : fmin(1, fmax(0, share));
    watch->last_s = now_s;
    watch->last_busy_s = busy_s;
    watch->last_own_s = own_s;
  }
  state->busy_other_share = watch->share; /* of the last span that was long enough, when this one is not */
  state->time_unix_s = seconds(CLOCK_REALTIME);
  state->load_1m = read_number_of("/proc/loadavg");
  state->clock_count = read_clocks(state->clock_mhz, "scaling_cur_freq");
  if (state->clock_count == 0) state->clock_count = read_cpuinfo_clocks(state->clock_mhz);
  state->clock_limit_count = read_clocks(state->clock_limit_mhz, "scaling_max_freq");
  state->temperature_c = hottest(&watch->temperatures);
  state->throttled = any_cooling(&watch->coolers);
  state->available_bytes = available_bytes();
  state->preemptions = preemptions();
  state->swapped_bytes = swapped_bytes();
  state->on_battery = -1;
  for_each_entry(SYS "/class/power_supply", find_battery, &state->on_battery);
  state->huge_page_share = watch->huge_page_share;
  state->waited_s = 0;
}

static void pause_for(double span_s) {
  struct timespec left = {.tv_sec = (time_t)span_s, .tv_nsec = (long)((span_s - floor(span_s)) * 1e9)};
  while (nanosleep(&left, &left) != 0) continue;
}

void watch_settle(Watch *watch, double max_wait_s, double max_temperature_c, void (*waiting)(void *context), void *context,
                  MachineState *state) {
  double waited_s = 0;
  watch_look(watch, state);
  if (isnan(state->busy_other_share) && max_wait_s > 0) {
    pause_for(SHORTEST_SPAN_S);
    watch_look(watch, state);
  }
  while ((state->busy_other_share > BUSY_SHARE || state->temperature_c >= max_temperature_c) && waited_s < max_wait_s) {
    waiting(context);
    double span_s = fmin(LOOK_EVERY_S, max_wait_s - waited_s);
    pause_for(span_s);
    waited_s += span_s;
    watch_look(watch, state);
  }
  state->waited_s = waited_s;
}

/* -- as JSON ------------------------------------------------------------------------------------------------------------- */

static void put_clocks(Line *line, const double *mhz, int count) {
  if (count == 0) {
    put(line, "null");
    return;
  }
  put(line, "[");
  for (int i = 0; i < count; i++) put(line, i ? ", %.1f" : "%.1f", mhz[i]);
  put(line, "]");
}

static void put_bytes(Line *line, int64_t bytes) {
  if (bytes < 0) {
    put(line, "null");
  } else {
    put(line, "%lld", (long long)bytes);
  }
}

static const char *truth(int value) { return value < 0 ? "null" : value ? "true" : "false"; }

void put_state(Line *line, const MachineState *state) {
  put(line, "{\"time_unix_s\": %.6f, \"load_1m\": ", state->time_unix_s);
  put_number(line, state->load_1m);
  put(line, ", \"clock_mhz\": ");
  put_clocks(line, state->clock_mhz, state->clock_count);
  put(line, ", \"clock_limit_mhz\": ");
  put_clocks(line, state->clock_limit_mhz, state->clock_limit_count);
  put(line, ", \"temperature_c\": ");
  put_number(line, state->temperature_c);
  put(line, ", \"throttled\": %s, \"steal_ticks\": ", truth(state->throttled));
  put_bytes(line, state->steal_ticks);
  put(line, ", \"preemptions\": ");
  put_bytes(line, state->preemptions);
  put(line, ", \"busy_other_share\": ");
  put_number(line, state->busy_other_share);
  put(line, ", \"available_bytes\": ");
  put_bytes(line, state->available_bytes);
  put(line, ", \"swapped_bytes\": ");
  put_bytes(line, state->swapped_bytes);
  put(line, ", \"on_battery\": %s, \"huge_page_share\": ", truth(state->on_battery));
  put_number(line, state->huge_page_share);
  put(line, ", \"waited_s\": %.6g}", state->waited_s);
}

/* -- settings ------------------------------------------------------------------------------------------------------------ */

/* Those in use, each once, in alphabetical order. */
void put_governors(Line *line) {
  char found[8][32];
  int count = 0;
  for (int core = 0; core < MOST_CORES && core < sysconf(_SC_NPROCESSORS_CONF); core++) {
    char name[32];
    int at = 0;
    if (!read_line(name, sizeof name, CPU "/cpufreq/scaling_governor", core) || !*name) continue;
    while (at < count && strcmp(found[at], name) < 0) at++;
    if ((at < count && strcmp(found[at], name) == 0) || count == 8) continue;
    memmove(found[at + 1], found[at], (size_t)(count++ - at) * sizeof *found);
    memcpy(found[at], name, sizeof name);
  }
  char all[8 * 33] = "";
  for (int i = 0; i < count; i++) {
    if (i) strcat(all, "+");
    strcat(all, found[i]);
  }
  put_string_or_null(line, count ? all : NULL);
}

/* The word in brackets: "always [madvise] never". */
void put_huge_pages(Line *line) {
  char text[128];
  read_line(text, sizeof text, SYS "/kernel/mm/transparent_hugepage/enabled");
  char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;
  if (close) *close = '\0';
  put_string_or_null(line, close ? open + 1 : NULL);
}

/* qemu-user has a thread of its own in the process, which the host's kernel counts and the program has not started. */
bool is_emulated(void) { return read_entry("/proc/self/status", "Threads:") > 1; }

int64_t last_level_cache(void) {
  int64_t largest = 0;
  for (int index = 0; index < 8; index++) {
    char text[32], *unit;
    if (!read_line(text, sizeof text, CPU "/cache/index%d/size", 0, index)) continue;
    int64_t bytes = strtoll(text, &unit, 10);
    bytes <<= *unit == 'K' ? 10 : *unit == 'M' ? 20 : *unit == 'G' ? 30 : 0;
    if (bytes > largest) largest = bytes;
  }
  return largest;
}
