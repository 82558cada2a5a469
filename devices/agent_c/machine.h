/* How the machine is: clocks, temperature, load, other processes. Read where the kernel offers it without rights, null elsewhere;
   devices/health.py reads the same for the Python agent. */
#ifndef ARCHSEARCH_MACHINE_H
#define ARCHSEARCH_MACHINE_H

#include "json.h"

enum { MOST_CORES = 1024, MOST_SENSORS = 64, SENSOR_ROOM = 256 };

/* One look: devices.plan.MachineState. NAN, -1 and counts of zero stand for what the kernel does not tell. */
typedef struct {
  double time_unix_s, load_1m;
  double clock_mhz[MOST_CORES], clock_limit_mhz[MOST_CORES];
  int clock_count, clock_limit_count;
  double temperature_c;
  int throttled;
  int64_t steal_ticks, preemptions;
  double busy_other_share;
  int64_t available_bytes, swapped_bytes;
  int on_battery;
  double huge_page_share, waited_s;
} MachineState;

typedef struct {
  char paths[MOST_SENSORS][SENSOR_ROOM];
  int count;
} Sensors;

/* Looks at the machine; between two looks it knows how much of the machine other processes used. */
typedef struct {
  double last_s, last_busy_s, last_own_s;
  double share;           /* of the machine that others used in the last span that was long enough; NAN before there was one */
  double huge_page_share; /* set by the agent when it has looked: that walk over its pages is too slow for every look */
  Sensors temperatures;   /* the CPU's, in thousandths of a degree Celsius */
  Sensors coolers;        /* above 0 while the kernel cools by lowering the CPU's clocks */
} Watch;

void watch_begin(Watch *watch);
void watch_look(Watch *watch, MachineState *state);

/* Look until the machine is neither busy nor hotter than `max_temperature_c`, or `max_wait_s` is over; `waiting` is called before every
   pause. Leaves the last look, with how long it took to get there. */
void watch_settle(Watch *watch, double max_wait_s, double max_temperature_c, void (*waiting)(void *context), void *context,
                  MachineState *state);

void put_state(Line *line, const MachineState *state);

/* Settings that hold for a series, as JSON strings, or null: frequency governors ("performance"), transparent huge pages ("madvise"). */
void put_governors(Line *line);
void put_huge_pages(Line *line);

/* Whether this CPU is emulated by qemu-user, so that times mean nothing. To be asked before the process has started any thread. */
bool is_emulated(void);

/* Bytes of the largest cache that core 0 sees; 0 where the kernel does not tell. */
int64_t last_level_cache(void);

#endif
