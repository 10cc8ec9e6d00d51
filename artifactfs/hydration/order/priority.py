"""What is fetched before what: the order as data.

`Priority` is the order, `NAMES`, `SUFFIXES` and `FOLDERS` are the tables behind it. A user's
``hydrate_first`` globs come before everything the background does on its own.

`sweep` goes by it class by class, and lets some of them (``_BARRIERS``) land before the next one.
`lanes` take the wants of readers before those of the background. `readahead` asks which files are
large. Where all of a tree is wanted, most of it is missing, and that is ``MIN_FOR_SUBTREES`` blobs
or more, whole subtrees are fetched when source is reached: files of every class together.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from enum import IntEnum


class Priority(IntEnum):
    """Smaller is sooner."""

    EXPLICIT = 0
    """A program waits for it."""
    PREDICTED = 1
    """Readahead: siblings, the rest of a directory that is being scanned."""
    PREFETCH = 2
    """A user asked for it by `prefetch`."""
    FIRST = 3
    """Matches one of the user's ``hydrate_first`` globs."""
    GIT = 4
    """.gitignore and .gitattributes: git reads them at every ``add`` and ``status``."""
    MANIFEST = 5
    """What a tool reads to find out what the project is; also symbolic links."""
    SOURCE = 6
    OTHER = 7
    LARGE = 8
    """Binary by suffix, or larger than the limit of the repository."""
    RECENT = 9
    """Not in the tree: old versions that recent commits changed."""


SWEEP_ORDER = tuple(p for p in Priority if Priority.FIRST <= p <= Priority.LARGE)
"""The classes of the background sweep, in its order."""

NAMES: dict[Priority, str] = {
    Priority.GIT: ".gitignore .gitattributes .gitmodules .mailmap",
    Priority.MANIFEST: """
        package.json package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml
        pnpm-workspace.yaml bun.lock bun.lockb deno.json deno.jsonc deno.lock lerna.json nx.json
        turbo.json tsconfig.json jsconfig.json .npmrc .nvmrc .node-version .yarnrc .yarnrc.yml
        pyproject.toml setup.py setup.cfg requirements.txt requirements-dev.txt constraints.txt
        pipfile pipfile.lock poetry.lock uv.lock pdm.lock tox.ini noxfile.py manifest.in
        .python-version environment.yml conftest.py pytest.ini
        go.mod go.sum go.work go.work.sum cargo.toml cargo.lock rust-toolchain rust-toolchain.toml
        build.rs composer.json composer.lock gemfile gemfile.lock rakefile .ruby-version
        mix.exs mix.lock rebar.config build.gradle build.gradle.kts settings.gradle
        settings.gradle.kts gradle.properties gradlew pom.xml build.sbt project.clj deps.edn
        package.swift podfile podfile.lock pubspec.yaml pubspec.lock stack.yaml cabal.project
        flake.nix flake.lock default.nix shell.nix build.zig build.zig.zon
        makefile gnumakefile cmakelists.txt cmakepresets.json meson.build meson_options.txt
        configure.ac configure.in makefile.am kconfig kbuild build build.bazel workspace
        workspace.bazel module.bazel .bazelrc .bazelversion justfile taskfile.yml procfile
        dockerfile containerfile compose.yaml compose.yml docker-compose.yml docker-compose.yaml
        .dockerignore vagrantfile jenkinsfile .gitlab-ci.yml .travis.yml azure-pipelines.yml
        .editorconfig .pre-commit-config.yaml .prettierrc .eslintrc .eslintrc.json .flake8
        .pylintrc .ruff.toml ruff.toml mypy.ini .clang-format .clang-tidy .tool-versions
        .envrc .env.example renovate.json dependabot.yml codeowners agents.md claude.md
        readme readme.md readme.rst readme.txt license license.md license.txt licence copying
        changelog.md contributing.md authors notice version version.txt
        """,
}
"""File names, lower case, separated by white space."""

SUFFIXES: dict[Priority, str] = {
    Priority.MANIFEST: "lock csproj fsproj vbproj sln gemspec cabal nuspec props targets",
    Priority.SOURCE: """
        py pyi pyx pxd js jsx ts tsx mjs cjs mts cts vue svelte astro go rs c h cc cpp cxx hh hpp
        hxx inl m mm java kt kts scala groovy clj cljs cljc cs fs fsx vb rb php pl pm t lua r jl
        swift dart zig nim v vhd vhdl sv svh ex exs erl hrl hs lhs ml mli elm f f90 f95 for pas
        ada adb ads asm s cu cuh cl glsl hlsl vert frag wgsl metal proto thrift graphql gql sql
        sh bash zsh fish ps1 psm1 bat cmd awk sed tcl el lisp scm rkt vim nix tf hcl cmake mk am
        in ac m4 gradle bzl bazel star toml yaml yml json json5 jsonc ini cfg conf properties env
        xml xsd xsl html htm xhtml css scss sass less styl j2 jinja jinja2 tmpl tpl ejs hbs
        mustache haml pug erb md mdx rst txt adoc tex bib org pod man 1 3 5 8 service
        """,
    Priority.LARGE: """
        png jpg jpeg gif bmp ico icns webp avif tif tiff psd ai eps heic raw svgz
        mp3 mp4 m4a m4v mov avi mkv webm ogg ogv oga wav flac aac mid
        zip gz tgz bz2 tbz xz txz zst lz4 7z rar tar jar war ear whl egg gem nupkg deb rpm apk dmg
        iso img bin exe dll so dylib a o obj lib pdb class pyc pyo wasm node
        ttf otf woff woff2 eot pdf doc docx xls xlsx ppt pptx odt ods odp epub
        db sqlite sqlite3 mdb parquet arrow feather h5 hdf5 npy npz pkl pt pth onnx safetensors
        tflite ckpt model pack idx dat swf blend fbx glb gltf stl dcm nii
        """,
}
"""File name suffixes, lower case, without the dot."""

FOLDERS: dict[Priority, str] = {
    Priority.MANIFEST: ".github .gitlab .circleci .buildkite .vscode .idea .devcontainer .cargo",
}
"""Folders of CI and editor configuration: what is in them, at any depth."""


def _flatten(table: dict[Priority, str]) -> dict[bytes, Priority]:
    return {word.encode(): priority for priority, text in table.items() for word in text.split()}


_BY_NAME = _flatten(NAMES)
_BY_SUFFIX = _flatten(SUFFIXES)
_BY_FOLDER = _flatten(FOLDERS)


def compile_globs(globs: Sequence[str]) -> re.Pattern[bytes] | None:
    """One pattern for all of the user's globs; None where there are none.

    As in .gitignore: ``*`` and ``?`` stop at a slash, ``**`` does not; a glob without a slash
    matches a name at any depth, one with a slash starts at the root; a match of a folder covers
    what is in it.
    """
    parts = [_glob_regex(glob) for glob in globs if glob.strip("/")]
    return re.compile(b"|".join(parts)) if parts else None


def _glob_regex(glob: str) -> bytes:
    anchored = "/" in glob.rstrip("/")
    out = ["" if anchored else "(?:.*/)?"]
    for token in re.findall(r"\*\*/?|\*|\?|\[[^\]/]+\]|[^*?\[]+|\[", glob.strip("/")):
        match token:
            case "**/":
                out.append("(?:.*/)?")
            case "**":
                out.append(".*")
            case "*":
                out.append("[^/]*")
            case "?":
                out.append("[^/]")
            case _ if token.startswith("[") and token.endswith("]"):
                out.append("[" + token[1:-1].replace("\\", "\\\\").replace("!", "^", 1) + "]")
            case _:
                out.append(re.escape(token))
    return "(?:{}(?:/.*)?$)".format("".join(out)).encode("utf-8", "surrogateescape")


def classify(
    path: bytes,
    mode: int,
    size: int | None,
    *,
    first: re.Pattern[bytes] | None = None,
    max_blob: int = 8 << 20,
) -> Priority:
    """The background's priority of the file `path`; `size` in bytes where it is known."""
    if first is not None and first.match(path):
        return Priority.FIRST
    if size is not None and size > max_blob:
        return Priority.LARGE
    folder, _, name = path.rpartition(b"/")
    name = name.lower()
    by_name = _BY_NAME.get(name)
    if by_name is not None:
        return by_name
    if stat.S_ISLNK(mode):
        return Priority.MANIFEST
    _, dot, suffix = name.rpartition(b".")
    by_suffix = _BY_SUFFIX.get(suffix, Priority.OTHER) if dot else Priority.OTHER
    if b"." in folder and by_suffix != Priority.LARGE:
        for part in folder.split(b"/"):
            by_folder = _BY_FOLDER.get(part)
            if by_folder is not None:
                return by_folder
    if by_suffix is Priority.OTHER and mode & 0o111:
        return Priority.SOURCE  # a script without a suffix
    return by_suffix
