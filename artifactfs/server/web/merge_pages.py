"""The page that compares two branches, and merges them."""

from __future__ import annotations

from typing import Annotated, cast
from urllib.parse import urlencode

from fastapi import APIRouter, Form
from fastapi.responses import Response

from artifactfs.server.api.base import ContextOf, RepositoriesOf
from artifactfs.server.api.branches import other_repo
from artifactfs.server.api.content import read_content
from artifactfs.server.api.paging import list_forks
from artifactfs.server.content.merging import (
    Comparison,
    MergeOrder,
    Method,
    Side,
    compare,
    compare_diff,
    merge,
)
from artifactfs.server.content.objects import NoSuchContent
from artifactfs.server.jobs.repositories import check_branch
from artifactfs.server.problems import Code, Problem
from artifactfs.server.web.page_data import branch_names, diff_lines
from artifactfs.server.web.visitors import FormVisitorOf, VisitorOf, back_to, page_of, render

router = APIRouter(include_in_schema=False)

_COMMITS = 100
_SHOWN_BYTES = 512 * 1024
_METHODS = ("merge", "squash", "fast-forward")


@router.get("/ui/ns/{namespace}/{name}/compare")
async def get_comparison(
    visitor: VisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    head: str = "",
    base: str = "",
    head_repo: str = "",
    merged: str = "",
) -> Response:
    repo = await repositories.get_ready(visitor.account_id, namespace, name)
    other = await other_repo(repositories, visitor.caller, repo, head_repo or None)
    base = base or repo.default_branch
    bases = await read_content(context, repo, branch_names)
    heads = await read_content(context, other, branch_names)
    same = repo.id == other.id
    if not head and not same:
        head = other.default_branch
    found: Comparison | None = None
    patch: list[tuple[str, str]] = []
    missing = False
    if head and not merged:
        sides = Side(repo, f"refs/heads/{base}"), Side(other, f"refs/heads/{head}")
        try:
            found = await compare(context, *sides, _COMMITS)
            if found.ends.ahead:
                patch = diff_lines(await compare_diff(context, *sides, _SHOWN_BYTES))
        except NoSuchContent:
            missing = True
    forks = [
        each for each in await list_forks(context.store, repo) if visitor.token.may_use(each[0])
    ]
    return render(
        "compare.html",
        visitor,
        repo=repo,
        base=base,
        head=head,
        head_repo="" if same else other.full_name,
        bases=bases,
        heads=heads,
        forks=["/".join(each) for each in forks],
        found=found,
        patch=patch,
        missing=missing,
        merged=merged,
    )


@router.post("/ui/ns/{namespace}/{name}/merge")
async def do_merge(
    visitor: FormVisitorOf,
    context: ContextOf,
    repositories: RepositoriesOf,
    namespace: str,
    name: str,
    head: Annotated[str, Form(max_length=200)] = "",
    base: Annotated[str, Form(max_length=200)] = "",
    head_repo: Annotated[str, Form(max_length=200)] = "",
    method: Annotated[str, Form(max_length=20)] = "merge",
    message: Annotated[str, Form(max_length=10_000)] = "",
    expected: Annotated[str, Form(max_length=40)] = "",
    expected_head: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Merges what the page showed: neither branch may have moved since."""
    repo = await repositories.get_ready(visitor.account_id, namespace, name)
    other = await other_repo(repositories, visitor.caller, repo, head_repo or None)
    if method not in _METHODS or "\0" in message:
        raise Problem(Code.INVALID_INPUT, "The form is not valid")
    order = MergeOrder(
        base=check_branch(base or repo.default_branch, "/base"),
        head=Side(other, f"refs/heads/{check_branch(head, '/head')}"),
        method=cast(Method, method),
        message=message.replace("\r\n", "\n").strip() or None,
        expected=expected,
        expected_head=expected_head,
    )
    try:
        done = await merge(context, repo, order, actor=visitor.token.id)
    except NoSuchContent:
        raise Problem(Code.NOT_FOUND, "There is no such branch") from None
    fields = {"base": order.base, "head": head, "head_repo": head_repo, "merged": done.after}
    return back_to(f"{page_of(repo)}/compare?{urlencode(fields)}")
