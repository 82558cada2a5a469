"""How a phone is: heat, battery, screen. Asked between measurements, never during one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

QUESTION = r"""dumpsys thermalservice 2>/dev/null
echo "====zones"
for z in /sys/class/thermal/thermal_zone*; do
  [ -r $z/temp ] && [ -r $z/type ] && read -r t <$z/temp 2>/dev/null && read -r k <$z/type && echo "$t $k"
done
echo "====battery"; dumpsys battery 2>/dev/null
echo "====power"; dumpsys power 2>/dev/null | grep mWakefulness=
true
"""
CPU = re.compile(r"cpu|soc|big|little|cluster|tsens_tz_sensor", re.I)
"""Zones of the processor, as vendors call them; batteries and chargers have others."""
THROTTLED = 2
"""Android's THERMAL_STATUS_MODERATE: from here on it lowers clocks so that one notices."""
HOT_C = 75.0
"""Where we wait for a phone to cool; a choice: well below where phones throttle, well above a phone that idles."""
LOOK_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PhoneState:
    """What a phone tells without root; None where it does not."""

    thermal_status: int | None = None
    """Android's: 0 none, 1 light, 2 moderate, 3 severe, 4 critical, 5 emergency, 6 shutdown."""
    cpu_c: float | None = None
    """The hottest sensor of the processor."""
    battery_c: float | None = None
    battery_percent: int | None = None
    plugged: bool | None = None
    screen_on: bool | None = None

    @property
    def throttled(self) -> bool | None:
        return self.thermal_status >= THROTTLED if self.thermal_status is not None else None

    @property
    def hot(self) -> bool:
        return bool(self.throttled) or (self.cpu_c is not None and self.cpu_c >= HOT_C)


def parse(answer: str) -> PhoneState:
    """What the answer to `QUESTION` says."""
    thermal, _, rest = answer.partition("====zones")
    zones, _, rest = rest.partition("====battery")
    battery, _, power = rest.partition("====power")
    status = re.search(r"^Thermal Status: (\d+)", thermal, re.M)
    hottest = [_celsius(int(milli)) for milli, kind in re.findall(r"^(-?\d+) (.+)$", zones, re.M) if CPU.search(kind)]
    if not hottest:  # vendors may keep the zones to themselves; then the service tells. Type 0 is the CPU.
        current = thermal.rpartition("Current temperatures")[2]
        hottest = [float(value) for value in re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=0,", current)]
    facts = dict(re.findall(r"^\s*([\w ]+): (\w+)\s*$", battery, re.M))
    powered = [value == "true" for name, value in facts.items() if name.endswith("powered")]
    awake = re.search(r"mWakefulness=(\w+)", power)
    return PhoneState(
        thermal_status=int(status[1]) if status else None,
        cpu_c=max(hottest) if hottest else None,
        battery_c=int(facts["temperature"]) / 10 if facts.get("temperature", "").isdigit() else None,
        battery_percent=int(facts["level"]) if facts.get("level", "").isdigit() else None,
        plugged=any(powered) if powered else None,
        screen_on=awake[1] == "Awake" if awake else None,
    )


def cooled(look: Callable[[], PhoneState], limit_s: float, *, sleep: Callable[[float], object] = time.sleep) -> tuple[PhoneState, float]:
    """Look until the phone is not hot, or `limit_s` is over.

    Returns:
        The last look, which may still be `hot`, and how many seconds were waited.
    """
    state, waited = look(), 0.0
    while state.hot and waited < limit_s:
        pause = min(LOOK_EVERY_S, limit_s - waited)
        sleep(pause)
        waited += pause
        state = look()
    return state, waited


def _celsius(raw: int) -> float:
    """Zones count in thousandths of a degree; some vendors in tenths, or in degrees."""
    return raw / 1000 if abs(raw) >= 1000 else raw / 10 if abs(raw) > 150 else float(raw)
