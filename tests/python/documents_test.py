#!/usr/bin/env python3
"""The documents hang together: links between them lead to files and headings that are there, every document is reached from README.md, which stays short,
and files that they name in backticks exist."""
import os
import re
import unittest

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
DOCUMENTS = ["README.md", "HACKING.md", "CONTRIBUTING.md", "slurm/README.md", "data/README.md"] + sorted(
    "docs/" + name for name in os.listdir(os.path.join(ROOT, "docs")))
MOST_LINES = 120
NAMED = re.compile(r"`((?:configs|data|docs|kernels|launch|packages|pipeline|scripts|slurm|stages|tests)/[\w./-]+\.\w+)[`/ ]")


def text_of(document):
    with open(os.path.join(ROOT, document)) as f:
        return f.read()


def anchors(document):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document):
    """(document, anchor) of each link that leads to a file of this repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document, anchor


class Documents(unittest.TestCase):
    def test_links(self):
        for document in DOCUMENTS:
            for target, anchor in links(document):
                with self.subTest(document=document, target=target, anchor=anchor):
                    self.assertTrue(os.path.exists(os.path.join(ROOT, target)))
                    if anchor:
                        self.assertIn(anchor, anchors(target))

    def test_named_files(self):
        for document in DOCUMENTS:
            for name in NAMED.findall(text_of(document)):
                if not re.search(r"NAME|FOLDER|/name\b", name):
                    with self.subTest(document=document, name=name):
                        self.assertTrue(os.path.exists(os.path.join(ROOT, name)))

    def test_readme(self):
        self.assertLessEqual(len(text_of("README.md").splitlines()), MOST_LINES)
        reached = {target for target, _ in links("README.md")}
        for document in DOCUMENTS:
            if document.startswith("docs/"):
                self.assertIn(document, reached)

    def test_containers(self):
        """Dockerfile and qpipe.def have the same images."""
        docker, apptainer = text_of("Dockerfile"), text_of("qpipe.def")
        versions = {name: re.search(rf"^ARG {name}=(.+)$", docker, re.M).group(1) for name in ("CUDA", "UBUNTU")}
        images = [image.replace("${CUDA}", versions["CUDA"]).replace("${UBUNTU}", versions["UBUNTU"]) for image in re.findall(r"^FROM (\S+)", docker, re.M)]
        self.assertEqual(images, re.findall(r"^From: (\S+)", apptainer, re.M))


if __name__ == "__main__":
    unittest.main()
