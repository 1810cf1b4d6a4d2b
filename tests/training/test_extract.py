"""Pages, code, glosses, Bibles and the user's files to documents; and what archives may not hold."""

import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import ConfigError, UsageError
from pelagos.training import archives
from pelagos.training.archives import matcher, read_members
from pelagos.training.catalogue import SAMPLE, SOURCES
from pelagos.training.extract import Document, cleaned, documents, kjv_chapters
from pelagos.training.html_text import html_to_text
from pelagos.training.sources import Fetched, SourceConfig, SourceUnavailableError, fetch, named

ONLY_FILES = matcher(("*",), ())


def source(rule: str, path: Path, kind: str = "pypi", **fields: object) -> tuple[SourceConfig, Fetched]:
    config = SourceConfig(name="x", kind=kind, package=str(path), rule=rule, licence="MIT", **fields)
    return config, Fetched(paths=(path,), version="1")


def zip_file(folder: Path, files: dict[str, str | bytes]) -> Path:
    path = folder / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


# --- HTML ---


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One\n  two&nbsp;&amp; three</p><p>Four", "One two & three\n\nFour"),
        ("<head><title>x</title></head><body>a<script>if (a<b) {}</script><style>p{}</style>b", "ab"),
        ("<nav><ul><li>x</ul></nav><header>y</header><h1>T</h1>t<footer>z</footer>", "T\n\nt"),
        ("<p>See:</p><pre>def f():\n    x = <b>1</b>\n\n    return x\n</pre><p>End",
         "See:\n\ndef f():\n    x = 1\n\n    return x\n\nEnd"),
        ("<ul><li>a<li> b </ul>c", "a\nb\n\nc"),
        ("<table><tr><th>a<th>b<tr><td>1</td><td></td><td>2</td></table>", "a | b\n1 | | 2"),
        ("a<br>b<hr>c<div>d</div>e", "a\nb\nc\nd\ne"),
        # Furniture by class, id and role; an unclosed element of another name inside it.
        ('<div class="x related">a<ul><li>b</div>c', "c"),
        ('<div id="footer">a<div>b</div>c</div>d', "d"),
        ('<div role="navigation">a</div>b', "b"),
        ('<h2>Title<a class="headerlink" href="#x">¶</a></h2>', "Title"),
        # Not furniture: a section whose title is "Path", an element that need not be closed.
        ('<section id="path"><p>a</section>', "a"),
        ('<li class="nosearch">a<li>b', "a\nb"),
        ("</pre></div>a</p>", "a"),
        ("a &lt;b&gt; &#x41; &unknown;", "a <b> A &unknown;"),
        ("", ""),
    ],
)  # fmt: skip
def test_html_to_text(html: str, text: str) -> None:
    assert html_to_text(html) == text


@given(st.text(st.sampled_from('<>/pre div class="related"&;\n a!-[]'), max_size=80))
def test_any_html_gives_tidy_text(html: str) -> None:
    text = html_to_text(html)
    assert "\n\n\n" not in text
    assert not any(line.endswith(" ") for line in text.split("\n"))


def test_pages_of_a_package(tmp_path: Path) -> None:
    files = {"docs/b.html": "<p>B</p>", "docs/a.html": "<p>caf\u00e9</p>".encode("latin-1"), "docs/c.txt": "no"}
    found = documents(*source("html", zip_file(tmp_path, files), include=("docs/*.html",)))
    assert list(found) == [Document(name="docs/a.html", text="café"), Document(name="docs/b.html", text="B")]


def test_cleaned() -> None:
    assert cleaned("\r\n\na  \r\nb\n\n\n\n\n  c\t\n\n") == "a\nb\n\n\n  c"


# --- code ---


def test_code_without_tests_tables_and_giants(tmp_path: Path) -> None:
    code = "def f(x):\n    return x\n"
    files = {
        "pkg/a.py": code,
        "pkg/tests/test_a.py": code,
        "pkg/table.py": "T = [" + "0x1F, " * 500 + "]",
        "pkg/giant.py": code * 9000,
        "pkg/data.json": "{}",
    }
    found = documents(*source("python", zip_file(tmp_path, files), include=("pkg/*.py",), exclude=("*/tests/*",)))
    assert [document.name for document in found] == ["pkg/a.py"]


# --- WordNet ---


def test_glosses(tmp_path: Path) -> None:
    noun = (
        "  1 This software and database is being provided | not a gloss\n"
        "00001740 03 n 01 entity 0 002 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which is perceived  \n"
        "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus; "
        '"the dog barked"  \n'
    )
    adjective = "00002098 00 s 02 unable(p) 0 galore(ip) 0 002 = 05200169 n 0000 | (usually followed by `to')  \n"
    path = zip_file(tmp_path, {"w/data.noun": noun * 40, "w/data.adj": adjective})
    found = list(documents(*source("wordnet", path)))
    assert [(document.name, document.text.count("\n") + 1) for document in found] == [
        ("w/data.adj:0", 1),
        ("w/data.noun:0", 64),
        ("w/data.noun:64", 16),
    ]
    assert found[0].text == "unable, galore (adjective): (usually followed by `to')"
    assert found[1].text.startswith(
        "entity (noun): that which is perceived\n"
        'dog, domestic dog, Canis familiaris (noun): a member of the genus; "the dog barked"\n'
    )


# --- Bibles ---


def sword_files(blocks: list[str]) -> dict[str, bytes]:
    index, data = b"", b""
    for block in blocks:
        packed = zlib.compress(block.encode())
        index += struct.pack("<III", len(data), len(packed), len(block.encode()))
        data += packed
    return {f"m/{part}.{end}": x for part in ("ot", "nt") for end, x in (("bzs", index), ("bzz", data))}


def test_sword_chapters(tmp_path: Path) -> None:
    book = (
        '<title>Preface</title><chapter n="1" osisID="Gen.1" sID="Gen.1"/><w lemma="strong:H1">In</w> <w>the</w> '
        '<w>beginning</w><note placement="foot"><reference>1:1 </reference>a note</note>, <q>“God<q/> '
        '<div sID="gen1" type="x-p"/>made &amp; saw.<l level="1"/>A line<lb/>and one <chapter eID="Gen.1" n="1"/>'
        '<chapter n="2" osisID="Gen.2" sID="Gen.2"/>Two'
    )
    found = list(documents(*source("sword", zip_file(tmp_path, sword_files(["<milestone/>", book])))))
    assert [(document.name, document.text) for document in found[:2]] == [
        ("Gen.1", "In the beginning, “God\nmade & saw.\nA line\nand one"),
        ("Gen.2", "Two"),
    ]
    assert len(found) == 4


def test_broken_sword_modules(tmp_path: Path) -> None:
    files = sword_files(["x" * 99])
    with pytest.raises(UsageError, match=r"must hold nt\.bzs and nt\.bzz"):
        list(documents(*source("sword", zip_file(tmp_path, {k: v for k, v in files.items() if "ot" in k}))))
    broken = files | {"m/ot.bzz": b"\0" * 20}
    with pytest.raises(UsageError, match="block of a SWORD module is broken"):
        list(documents(*source("sword", zip_file(tmp_path, broken))))
    bomb = files | {"m/ot.bzs": struct.pack("<III", 0, 9, 1 << 31)}
    with pytest.raises(UsageError, match="2147483648 bytes"):
        list(documents(*source("sword", zip_file(tmp_path, bomb))))


def test_kjv_chapters() -> None:
    printed = (
        "\nGenesis 1\n\n  1 In the beginning God\ncreated the heaven.\n  2 And the earth\n\n1 Samuel 12\n\n"
        "  10 Verse ten\nSong of Songs, which is\nmore.\n"
    )
    assert list(kjv_chapters(printed)) == [
        Document(name="Genesis 1", text="In the beginning God created the heaven.\nAnd the earth"),
        Document(name="1 Samuel 12", text="Verse ten Song of Songs, which is more."),
    ]


# --- dialogues ---


def test_dialogues(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML is optional")
    text = (
        "categories: [a]\nconversations:\n- - hi\n  - hello, you\n- - hi\n  - hello, you\n- - 3\n  - x: y\n  - four\n"
    )
    [found] = documents(*source("dialogues", zip_file(tmp_path, {"a.yml": text})))
    assert found.text == "- hi\n- hello, you\n\n- four"
    with pytest.raises(UsageError, match=r"a\.yml must be YAML with a list named conversations"):
        list(documents(*source("dialogues", zip_file(tmp_path, {"a.yml": "- 1"}))))


def test_a_missing_python_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SourceUnavailableError, match="pip install pyyaml"):
        list(documents(*source("dialogues", zip_file(tmp_path, {"a.yml": ""}))))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceUnavailableError, match=r"a\.parquet needs the Python package pyarrow: pip install"):
        list(documents(*source("text", tmp_path / "a.parquet", "folder")))


# --- the user's files ---


def test_folder_of_texts_and_records(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.txt").write_text("B\r\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "id": 1}\n\n{"text": "zwei"}\n')
    (tmp_path / "skip.bin").write_text("x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "skip.bin")
    found = documents(*source("text", tmp_path, "folder", include=("*.txt", "*.jsonl")))
    assert [(document.name, document.text) for document in found] == [
        ("a.jsonl:1", "one"), ("a.jsonl:3", "zwei"), ("sub/b.txt", "B\n"),
    ]  # fmt: skip
    [found_file] = documents(*source("text", tmp_path / "sub/b.txt", "folder"))
    assert found_file == Document(name="b.txt", text="B\n")


@pytest.mark.parametrize("line", ['{"txt": "a"}', '["text"]', '{"text": 1}', '{"text": "a"', '{"text": NaN}', "\xff"])
def test_bad_records_name_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line.encode("latin-1"))
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2"):
        list(documents(*source("text", path, "folder")))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["one", "two"]}), path)
    assert list(documents(*source("text", path, "folder"))) == [
        Document(name="a.parquet:0", text="one"),
        Document(name="a.parquet:1", text="two"),
    ]
    parquet.write_table(pyarrow.table({"id": [1]}), path)
    with pytest.raises(UsageError, match="must have a column named text"):
        list(documents(*source("text", path, "folder")))
    path.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="is not a Parquet file"):
        list(documents(*source("text", path, "folder")))


# --- archives ---


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a\\..\\x"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = zip_file(tmp_path, {"fine": "x", name: "y"})
    with pytest.raises(UsageError, match="leaves the folder"):
        read_members(path, lambda name: name == "fine")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_file(tmp_path, {"a": "x" * 60, "b": "x" * 60})
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 100)
    with pytest.raises(UsageError, match="holds more than"):
        read_members(path, ONLY_FILES)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 50)
    with pytest.raises(UsageError, match="member a is larger than"):
        read_members(path, ONLY_FILES)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/c").write_text("x" * 60)
    with pytest.raises(UsageError, match="c is larger than"):
        read_members(tmp_path / "folder", ONLY_FILES)


def test_broken_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UsageError, match="is not a wheel or zip file"):
        read_members(path, ONLY_FILES)


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian packages need dpkg-deb")


def debian_package(path: Path, members: list[tarfile.TarInfo]) -> Path:
    """A .deb is an ar archive of a version, and tar files of control data and of the package's files."""
    control = b"Package: x\nVersion: 1:2-3\nArchitecture: all\nMaintainer: m <m@x>\nDescription: d\n"
    parts = {"debian-binary": b"2.0\n"}
    for name, infos in (("control.tar", [tarfile.TarInfo("./control")]), ("data.tar", members)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for info in infos:
                data = control if name == "control.tar" else b"<p>text</p>" * info.isfile()
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        parts[name] = buffer.getvalue()
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in parts.items():
            file.write(b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (name.encode(), 0, 0, 0, 0o100644, len(data)))
            file.write(data + b"\n" * (len(data) % 2))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@needs_dpkg
def test_debian_members(tmp_path: Path) -> None:
    members = [tarfile.TarInfo("./usr/b.html"), tarfile.TarInfo("./usr/a.html"), link("./usr/c.html", "/etc/passwd")]
    path = debian_package(tmp_path / "x.deb", members)
    assert [member.name for member in read_members(path, ONLY_FILES)] == ["usr/a.html", "usr/b.html"]
    evil = debian_package(tmp_path / "evil.deb", [tarfile.TarInfo("./../x")])
    with pytest.raises(UsageError, match="leaves the folder"):
        read_members(evil, lambda name: False)
    whole = path.read_bytes()
    for size in (8, len(whole) - 8000, len(whole) - 20):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match="Debian package"):
            read_members(path, ONLY_FILES)


# --- getting sources ---


@needs_dpkg
def test_a_cached_package_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = debian_package(tmp_path / "x_2_all.deb", [tarfile.TarInfo("./usr/a.html")])
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("dpkg-deb", "tar"):
        (programs / program).symlink_to(str(shutil.which(program)))
    monkeypatch.setenv("PATH", str(programs))
    config = SourceConfig(name="x", kind="debian", package="x-doc", rule="html", licence="MIT")
    with pytest.raises(SourceUnavailableError, match="program apt-get, which this machine lacks"):
        fetch(config, tmp_path / "cache")

    apt = programs / "apt-get"
    apt.write_text('#!/bin/sh\n[ "$1 $2" = "download x-doc" ] || exit 3\n/bin/cp "$0.deb" x_2_all.deb\n')
    apt.chmod(0o755)
    with pytest.raises(SourceUnavailableError, match=r"apt-get download failed: .*does `apt-get update` help"):
        fetch(config, tmp_path / "cache")
    package.rename(programs / "apt-get.deb")
    first = fetch(config, tmp_path / "cache")
    assert first.version == "1:2-3"
    apt.unlink()
    assert fetch(config, tmp_path / "cache") == first
    assert [document.text for document in documents(config, first)] == ["text"]
    assert [path.name for path in (tmp_path / "cache/debian").iterdir()] == ["x-doc"]


def test_a_cached_wheel_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(name="x", kind="pypi", package="x", version="1", rule="python", licence="MIT")

    def no_network(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("pip", 600)

    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(SourceUnavailableError, match="did not end within 600 seconds"):
        fetch(config, tmp_path)
    assert list((tmp_path / "pypi").iterdir()) == []
    (tmp_path / "pypi/x-1").mkdir()
    wheel = zip_file(tmp_path / "pypi/x-1", {"x.py": "x = 1"})
    assert fetch(config, tmp_path) == Fetched(paths=(wheel,), version="1")
    wheel.unlink()
    with pytest.raises(SourceUnavailableError, match="remove the folder"):
        fetch(config, tmp_path)


def test_the_standard_library_is_at_hand(tmp_path: Path) -> None:
    [config] = named(SOURCES, ["python-stdlib"])
    names = {document.name for document in documents(config, fetch(config, tmp_path))}
    assert {"json/decoder.py", "heapq.py"} <= names
    assert not any("test" in name.split("/") or "site-packages" in name for name in names)


def test_bad_sources() -> None:
    good = {"name": "x", "kind": "pypi", "package": "x", "rule": "text", "licence": "MIT"}
    for change, message in (
        ({"name": "../x"}, "name must be 1 to 64 lower-case letters"),
        ({"kind": "hub"}, "kind must be one of"),
        ({"package": ""}, "package of source x must not be empty"),
        ({"include": "*.py"}, "include of source x must be a tuple"),
    ):
        with pytest.raises(ConfigError, match=message):
            SourceConfig(**(good | change))
    with pytest.raises(ConfigError, match="name of a PyPI project"):
        fetch(SourceConfig(**(good | {"package": "--index-url=x"})), Path("nowhere"))
    with pytest.raises(UsageError, match="there is no source 'y': the sources are"):
        named(SOURCES, ["y"])


def test_every_source_states_its_terms() -> None:
    assert all(config.licence and config.copyright for config in (*SOURCES, *SAMPLE))
    assert len({config.name for config in (*SOURCES, *SAMPLE)}) == len(SOURCES) + len(SAMPLE)


def test_the_sample_is_small_and_readable(tmp_path: Path) -> None:
    total = 0
    for config in SAMPLE:
        fetched = fetch(config, tmp_path)
        total += fetched.paths[0].stat().st_size
        texts = [document.text for document in documents(config, fetched)]
        assert len(texts) == len(set(texts)) > 15
    assert total < 1_000_000
    notice = (fetched.paths[0].parent / "NOTICE").read_text()
    assert all(config.package in notice for config in SAMPLE)
    assert json.loads(fetched.paths[0].read_text().splitlines()[0]).keys() == {"text"}
