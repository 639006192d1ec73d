"""Put the findings of results/small into the first cells of the notebooks and into the README: python -m tests.fill (tests hold them to it)."""

import json
import sys

from lib import batch, results


def fill_sources(jobs):
    """Write the sources and the README with the numbers of now; yields their paths. In the README a finding is named after its notebook:
    n02_recall_base."""
    known, readme = {}, jobs[0].path.parent.parent / "README.md"
    for job in jobs:
        findings = results.results_root() / "small" / job.name / "findings.json"
        document = json.loads(job.path.read_text(encoding="utf-8"))
        if findings.exists():
            found = json.loads(findings.read_text(encoding="utf-8"))
            known |= {f"n{job.name[:2]}_{name}": value for name, value in found.items()}
            document["cells"][0]["source"] = results.fill_answer(job.cells[0]["source"], found).splitlines(keepends=True)
            yield results.write_atomically(job.path, results.to_json(document, indent=1))
    if readme.exists() and {quoted[2] for quoted in results.BOLD_FINDING.findall(readme.read_text(encoding="utf-8"))} <= set(known):
        yield results.write_atomically(readme, results.fill_answer(readme.read_text(encoding="utf-8"), known))


if __name__ == "__main__":
    print(*fill_sources(batch.plan(sys.argv[1:], "small", [])), sep="\n")
