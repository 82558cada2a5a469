"""Made-up rows of a confirmation: three layouts of the search, three random ones and a baseline, at two widths."""

from __future__ import annotations

import random

from reports.confirmed_rows import Beside, Confirmed, ConfirmedRow, Contest, Role, Word


def sample_confirmed(random_: random.Random) -> Confirmed:
    roles: tuple[Role, ...] = ("search", "search", "baseline", "random", "search", "random", "random")

    def rows(level: float, *, synthetic: int) -> tuple[ConfirmedRow, ...]:
        found = []
        for at, role in enumerate(roles):
            seeds = tuple(level + 0.035 * at + random_.uniform(-0.012, 0.012) for _ in range(3))
            word: Word = "better" if at < 2 else "cannot tell" if at < 5 else "worse"
            mean = 0.035 * (at - 3)
            found.append(
                ConfirmedRow(
                    pattern=f"conv3 x{3 + at % 3}, gqa{4 * (1 + at % 2)}, conv3 x4, gqa8, conv3 x{7 - at % 3}",
                    role=role,
                    seeds=seeds,
                    half=0.011,
                    winner=at == 0,
                    solved=3 if synthetic and at < 5 else 0 if synthetic else None,
                    synthetic=synthetic,
                    baseline=None if role == "baseline" else Beside(mean=mean + 0.035, low=mean + 0.01, high=mean + 0.06, word=word),
                    random=None if role == "random" else Beside(mean=mean - 0.035, low=mean - 0.06, high=mean - 0.01, word=word),
                )
            )
        return tuple(found)

    note = "7 layouts from 3 new seeds: 64-channel copies, 1,200 steps of each synthetic task, 900 of text, within decode_ms@4096<=7"
    return Confirmed(
        winner=True,
        why="beats all of 3 random layouts of the same budgets, with 3 seeds each",
        contests=(
            Contest(label="64 channels", note=note, rows=rows(2.2, synthetic=3)),
            Contest(label="width 256", note="120,000,000 tokens each, trained by the trainer (cuda, bf16)", rows=rows(1.4, synthetic=0)),
        ),
        at_scale="at larger widths: the winner beats every random layout at every width",
    )
