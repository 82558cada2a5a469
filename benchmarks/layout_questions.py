"""What LFM2's report leaves open, asked of small copies at equal parameters, the same seeds for every layout (docs/findings.md).

    python benchmarks/layout_questions.py operators --run runs/findings [--seeds 3] [--text-steps 360] [--recall-steps 400] [--minutes 4]

`operators`: short convolution, SWA, GLA and GQA alone. `around`: the first three around one attention layer, also on recall.
`attention`: how many attention layers among convolutions, and where. `kernels`: 3 against 7, alone and around one attention layer. Each
result is kept in RUN/quality.jsonl as it comes; the same command goes on, also after `--minutes`. When all are there, RUN/QUESTION.json has
every training with its curve, and the differences from the question's first layout: paired by seed, with a 95 % interval by Student's t.

Letters: c, C short convolution with kernel 3, 7; s sliding window of a quarter of the context; l GLA; a GQA with 4 heads on 2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.cli.progress import stage
from archsearch.files import write_atomic
from archsearch.quality import Evaluator, QualityResult, QualitySettings, Training
from archsearch.quality.equal import copy_parameters, equal_parameters
from archsearch.quality.ranking import paired
from archsearch.quality.tasks import Task
from archsearch.spec import ArchSpec

CONTEXT = 4096
FIRST_SEED = 3000
"""Seeds that no search, validation or confirmation uses."""
ATTENTION = {"heads": 4, "kv_heads": 2, "head_dim": 64}
OPERATORS: dict[str, dict[str, Any]] = {
    "c": {"kind": "short_conv", "kernel_size": 3},
    "C": {"kind": "short_conv", "kernel_size": 7},
    "s": {"kind": "swa", "window": CONTEXT // 4, **ATTENTION},
    "l": {"kind": "gla", "heads": 4},
    "a": {"kind": "gqa", **ATTENTION},
}


@dataclass(frozen=True)
class Question:
    """Layouts to train on each task, in letters; others are compared with the first of a task.

    Attributes:
        among: layouts whose middle one decides how many parameters all have; those of the question unless given.
    """

    text: tuple[str, ...] = ()
    recall: tuple[str, ...] = ()
    among: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[tuple[Task, tuple[str, ...]], ...]:
        return ("text", self.text), ("recall", self.recall)


ALONE_AND_AROUND = ("cccc", "ssss", "llll", "aaaa", "ccac", "ssas", "llal")
QUESTIONS = {
    "operators": Question(text=ALONE_AND_AROUND[:4], among=ALONE_AND_AROUND),
    "around": Question(text=ALONE_AND_AROUND[4:], recall=ALONE_AND_AROUND[4:], among=ALONE_AND_AROUND),
    "attention": Question(text=("cccccc", "cccacc", "cacaca"), recall=("cacccc", "accccc", "cccacc", "ccccca", "cacaca")),
    "kernels": Question(text=("cccc", "CCCC", "ccac", "CCaC")),
}


def spec_of(letters: str) -> ArchSpec:
    rows = [{"operator": OPERATORS[letter], "ffn": {"intermediate_size": 768}} for letter in letters]
    return ArchSpec.from_dict({"name": letters, "hidden_size": 256, "vocab_size": 4096, "layers": rows})


def document_of(name: str, specs: dict[str, ArchSpec], results: dict[tuple[str, Task], list[QualityResult]]) -> dict[str, Any]:
    """Everything that is known, as plain data. Of recall, what is compared is how many steps it took; unresolved trainings have
    no such number, so that layouts with one are told by how many seeds solved it alone."""
    tasks: dict[str, Any] = {}
    for task, letters in QUESTIONS[name].asked:
        rows = []
        for layout in letters:
            found, first = results[layout, task], results[letters[0], task]
            solved = [result.status == "resolved" for result in found]
            values = [result.value if task == "text" else float(result.steps) for result in found]
            base = [result.value if task == "text" else float(result.steps) for result in first]
            known = task == "text" or (all(solved) and all(result.status == "resolved" for result in first))
            rows.append(
                {
                    "layout": layout,
                    "parameters": copy_parameters(specs[layout], context=CONTEXT),
                    "values": [result.value for result in found],
                    "steps": [result.steps for result in found],
                    "solved": solved if task == "recall" else None,
                    "difference": paired(values, base).to_dict() if known and layout != letters[0] else None,
                    "tokens": max(result.tokens for result in found),
                    "cpu_s": round(sum(result.seconds for result in found), 1),
                    "curves": [result.curve for result in found],
                }
            )
        if rows:
            tasks[task] = rows
    seeds = [result.seed for result in next(iter(results.values()))]
    return {"question": name, "operators": OPERATORS, "seeds": seeds, "tasks": tasks}


def trainings_of(name: str, specs: dict[str, ArchSpec], settings: QualitySettings, seeds: range) -> Iterator[tuple[str, Task, Training]]:
    """Of a task, a seed of all layouts before the next seed, so that an early stop leaves whole seeds."""
    for task, letters in QUESTIONS[name].asked:
        for seed in seeds:
            for layout in letters:
                yield layout, task, Training(spec=specs[layout], task=task, settings=settings, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text-steps", type=int, default=360)
    parser.add_argument("--recall-steps", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side, a thread each")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    options = parser.parse_args()
    asked = QUESTIONS[options.question]
    letters = list(dict.fromkeys((*asked.among, *asked.text, *asked.recall)))
    specs = dict(zip(letters, equal_parameters([spec_of(layout) for layout in letters], context=CONTEXT), strict=True))
    settings = QualitySettings(recall_steps=options.recall_steps, text_steps=options.text_steps, context=CONTEXT)
    trainings = list(trainings_of(options.question, specs, settings, range(FIRST_SEED, FIRST_SEED + options.seeds)))
    ends = time.monotonic() + 60 * (options.minutes or float("inf"))
    with Evaluator(options.run / "quality.jsonl", settings, workers=options.workers) as evaluator, stage("train") as bar:
        for done, (key, result) in enumerate(evaluator.train_all(training for _, _, training in trainings), 1):
            if isinstance(result, str):
                raise SystemExit(f"{key}: {result}")
            bar.update(done, len(trainings), note=f"{result.task}, seed {result.seed}")
            if time.monotonic() > ends and done < len(trainings):
                raise SystemExit(f"{done} of {len(trainings)} trainings are done; the same command goes on")
        results: dict[tuple[str, Task], list[QualityResult]] = {}
        for layout, task, training in trainings:
            known = evaluator.results.get(training.key)
            assert known is not None
            results.setdefault((layout, task), []).append(known)
    write_atomic(options.run / f"{options.question}.json", json.dumps(document_of(options.question, specs, results), indent=1) + "\n")
    for task, letters_of_task in asked.asked:
        for layout in letters_of_task:
            found = results[layout, task]
            shown = [
                f"{r.value:.3f}" if task == "text" else f"{r.steps} steps" if r.status == "resolved" else f"{r.value:.0%}" for r in found
            ]
            print(f"{task:7} {layout:7} {', '.join(shown)}")


if __name__ == "__main__":
    main()
