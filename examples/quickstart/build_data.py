"""Draw the quickstart data set from MedQuAD in BEIR layout; the same arguments always write the same rows.

    python examples/quickstart/build_data.py FOLDER_OF_MEDQUAD_IN_BEIR_LAYOUT examples/quickstart/data

Foci (document titles: a disease or a topic) are drawn at random and taken whole, so that the sibling answers
about one disease compete. Foci that share a question or an answer text are drawn together, so that the three pools
of questions (labelled, unlabelled, test) share no focus, no relevant document and no answer text except templates.
SOURCE.md in the output folder says what the files mean; the counts printed at the end belong there. Standard
library only.
"""

import argparse
import gzip
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SEED = 20261123
NUM_LABELLED, NUM_UNLABELLED, NUM_TEST = 120, 1_050, 300
# Documents to cover per pool: more than its questions need, so that many answers have no question of their own.
LABELLED_DOCUMENTS, UNLABELLED_DOCUMENTS, TEST_DOCUMENTS = 300, 2_350, 950
LABELLED_PER_TYPE = 3
"""Every question type that can gets this many labelled questions before the rest is drawn at random."""
TEMPLATE_COPIES = 8
"""A text that stands in so many documents is a template ("This condition is inherited in an autosomal recessive
pattern ..."), not the answer about one disease; it does not tie its foci together."""

Row = dict[str, Any]
Qrels = dict[str, dict[str, int]]


def main() -> None:
    """Read the source folder, draw the pools, write the output folder, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="MedQuAD in BEIR layout: corpus.jsonl.gz, queries.jsonl, qrels/")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    source, output = arguments.source, arguments.output

    documents = list(_json_lines(gzip.decompress((source / "corpus.jsonl.gz").read_bytes())))
    queries = {row["_id"]: row for row in _json_lines((source / "queries.jsonl").read_bytes())}
    splits = {split: _read_qrels(source / "qrels" / f"{split}.tsv") for split in ("train", "dev", "test")}
    draw = random.Random(SEED)  # noqa: S311 - a reproducible draw, no secret

    groups = _focus_groups(documents, [*splits.values()])
    learn, held_out = splits["train"], splits["dev"] | splits["test"]
    labelled_groups, rest = _take(_touched(groups, learn), LABELLED_DOCUMENTS, draw)
    unlabelled_groups, _ = _take(rest, UNLABELLED_DOCUMENTS, draw)
    learnt = _relevant(learn)
    only_held_out = [group for group in _touched(groups, held_out) if learnt.isdisjoint(group)]
    test_groups, _ = _take(only_held_out, TEST_DOCUMENTS, draw)

    labelled = _spread(_questions(labelled_groups, learn), queries, NUM_LABELLED, draw)
    unlabelled = _sample(_questions(unlabelled_groups, learn), NUM_UNLABELLED, draw)
    test = _sample(_questions(test_groups, held_out), NUM_TEST, draw)

    kept = {doc_id for group in [*labelled_groups, *unlabelled_groups, *test_groups] for doc_id in group}
    (output / "qrels").mkdir(parents=True, exist_ok=True)
    _write_gzip(output / "corpus.jsonl.gz", (row for row in documents if row["_id"] in kept))
    # In the source's order, so that nothing about a query's pool can be read off its position.
    chosen = {*labelled, *unlabelled, *test}
    (output / "queries.jsonl").write_bytes(_dump(queries[key] for key in queries if key in chosen))
    for split, keys, qrels in (("train", labelled, learn), ("pool", unlabelled, learn), ("test", test, held_out)):
        _write_qrels(output / "qrels" / f"{split}.tsv", {key: qrels[key] for key in sorted(keys)})
    (output / "LICENSE").write_bytes((source / "LICENSE").read_bytes())
    title = {row["_id"]: row["title"] for row in documents}
    print(json.dumps(_counts(kept, title, queries, {"train": labelled, "pool": unlabelled, "test": test}), indent=1))  # noqa: T201


def _focus_groups(documents: list[Row], all_qrels: list[Qrels]) -> list[list[str]]:
    """Document ids of foci that belong together: equal titles (whatever the case), answer texts or questions."""
    copies = Counter(row["text"] for row in documents)
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for row in documents:
        ties = [f"focus {row['title'].strip().casefold()}"]
        if copies[row["text"]] < TEMPLATE_COPIES:
            ties.append(f"text {row['text']}")
        for tie in ties:
            parent[root(tie)] = root(f"document {row['_id']}")
    for qrels in all_qrels:
        for query_id, relevant in qrels.items():
            for doc_id in relevant:
                parent[root(f"question {query_id}")] = root(f"document {doc_id}")
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for row in documents:
        groups[root(f"document {row['_id']}")].append(row["_id"])
    return list(groups.values())


def _touched(groups: list[list[str]], qrels: Qrels) -> list[list[str]]:
    relevant = _relevant(qrels)
    return [group for group in groups if not relevant.isdisjoint(group)]


def _relevant(qrels: Qrels) -> set[str]:
    return {doc_id for found in qrels.values() for doc_id in found}


def _take(groups: list[list[str]], num_documents: int, draw: random.Random) -> tuple[list[list[str]], list[list[str]]]:
    """Whole groups at random until they hold `num_documents`; and the groups that are left."""
    order = draw.sample(groups, len(groups))
    total = 0
    for position, group in enumerate(order):
        total += len(group)
        if total >= num_documents:
            return order[: position + 1], order[position + 1 :]
    raise SystemExit(f"the source has only {total} documents for a pool of {num_documents}")


def _questions(groups: list[list[str]], qrels: Qrels) -> list[str]:
    kept = {doc_id for group in groups for doc_id in group}
    return sorted(query_id for query_id, relevant in qrels.items() if kept.issuperset(relevant))


def _sample(keys: list[str], size: int, draw: random.Random) -> list[str]:
    if len(keys) < size:
        raise SystemExit(f"only {len(keys)} questions for a pool of {size}: raise its number of documents")
    return draw.sample(keys, size)


def _spread(keys: list[str], queries: dict[str, Row], size: int, draw: random.Random) -> list[str]:
    """Some questions of every type first, so that rare types are labelled too; then at random."""
    by_type: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_type[queries[key]["metadata"]["type"]].append(key)
    chosen: list[str] = []
    for kind in sorted(by_type):
        chosen += draw.sample(by_type[kind], min(LABELLED_PER_TYPE, len(by_type[kind])))
    left = [key for key in keys if key not in set(chosen)]
    return chosen + _sample(left, size - len(chosen), draw)


def _counts(kept: set[str], title: dict[str, str], queries: dict[str, Row], pools: dict[str, list[str]]) -> Row:
    counts: Row = {"documents": len(kept), "foci": len({title[doc_id] for doc_id in kept})}
    for name, keys in pools.items():
        types: defaultdict[str, int] = defaultdict(int)
        for key in sorted(keys):
            types[queries[key]["metadata"]["type"]] += 1
        counts[name] = {"queries": len(keys), "types": dict(sorted(types.items(), key=lambda kv: (-kv[1], kv[0])))}
    return counts


def _json_lines(raw: bytes) -> Iterator[Row]:
    return (json.loads(line) for line in raw.split(b"\n") if line)


def _read_qrels(path: Path) -> Qrels:
    qrels: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query_id, doc_id, score = line.split("\t")
        qrels[query_id][doc_id] = int(score)
    return dict(qrels)


def _write_qrels(path: Path, qrels: Qrels) -> None:
    lines = [f"{query_id}\t{doc_id}\t{score}\n" for query_id, found in qrels.items() for doc_id, score in found.items()]
    path.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")


def _dump(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write_gzip(path: Path, rows: Iterable[Row]) -> None:
    packed = io.BytesIO()
    # mtime and name would make two runs differ.
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write(_dump(rows))
    path.write_bytes(packed.getvalue())


if __name__ == "__main__":
    main()
