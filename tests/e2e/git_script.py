"""A day of work with git, as shell commands: the same in the mount and in a plain clone.

Each command runs in the top of the working tree with `$ORIGIN` (the remote's URL), `$SCRATCH` (a
directory outside) and dates that move on by a minute from step to step, so that equal work gives
equal object ids. A command may fail, if it fails in the same way on both sides.
"""

# A command is easier to read on one line than in pieces.
# ruff: noqa: E501

from __future__ import annotations

STEPS: tuple[str, ...] = (
    "git status",
    "echo new > new.txt && git status --short && git add new.txt && git commit -qm 'Add a file'",
    "echo more >> new.txt && git diff && git commit -qam 'Change it'",
    "git commit -q --amend -m 'Change it, amended'",
    "echo one > src/one.py; git add -N src/one.py; git diff --stat; git add src; git commit -qm One",
    "printf 'a\\nb\\nc\\nd\\ne\\nf\\ng\\nh\\ni\\nj\\n' > list.txt; git add .; git commit -qm List",
    "sed -i '1s/.*/A/;9s/.*/I/' list.txt; printf 'y\\nn\\n' | git add -p; git diff --cached;"
    " git commit -qm 'Half of it'; git diff",
    "git restore list.txt && git status --short",
    "git switch -q -c feature && echo f > feature.txt && git add . && git commit -qm Feature",
    "git switch -q main && ls feature.txt; git branch -v",
    "git merge -q --no-ff -m 'Merge feature' feature && git log --oneline -3",
    "git branch -d feature",
    "git checkout -q -b left && echo left > list.txt && git commit -qam Left",
    "git checkout -q -b right main && echo right > list.txt && git commit -qam Right",
    "git merge left; git status; cat list.txt",
    "git merge --abort; git status --short",
    "git merge left; git checkout --ours list.txt; git add list.txt; git commit -qm 'Keep ours'",
    "git checkout -q left && git rebase right~1; git status | head -5; cat list.txt",
    "echo both > list.txt; git add list.txt; GIT_EDITOR=true git rebase --continue 2>&1 | tail -1",
    "git checkout -q main && git cherry-pick left; cat list.txt; git status --short",
    "git cherry-pick --abort; git cherry-pick -X theirs right~1 && git log -1 --format=%s%n%b",
    "git revert --no-edit HEAD && head -3 list.txt",
    "git log --oneline -5 -p -- list.txt | head -40",
    'for n in 1 2 3 4; do echo $n > series$n; git add .; git commit -qm "Series $n"; done',
    "GIT_SEQUENCE_EDITOR=\"sed -i '2s/pick/drop/;3s/pick/squash/'\" GIT_EDITOR=true"
    " git rebase -q -i HEAD~4 && git log --oneline -4",
    "echo fixed >> series1; git commit -qa --fixup HEAD~1;"
    " GIT_SEQUENCE_EDITOR=true git rebase -q -i --autosquash HEAD~3; git log --oneline -3",
    "echo dirty >> README.md; echo untracked > untracked; git stash -q -u; git status --short; ls",
    "git stash list; git stash show -p; git stash pop -q; git status --short",
    "git add README.md; git reset -q; git status --short",
    "git reset -q --hard; git status --short; cat untracked",
    "git clean -nd; git clean -qfd; git status --short",
    "mkdir -p build; echo x > build/x; echo o > a.o; git status --short --ignored; git clean -qfdX",
    "git reset --soft HEAD~2; git status --short; git diff --cached --stat",
    "git commit -qm 'Softly again'; git reset -q --mixed HEAD~1; git status --short",
    "git add -A; git commit -qm 'Mixed again'; git reset --keep HEAD~1; git log --oneline -1",
    "git mv src/package1 src/moved && git status --short | head -5 && git commit -qm 'Move it'",
    "git rm -rq many && ls -d many; git commit -qm 'Remove many'; git show --stat HEAD | tail -1",
    "git revert --no-edit -n HEAD && git commit -qm 'Many again' && ls many | wc -l",
    "git rm -q --cached LICENSE; git status --short; git add LICENSE; git status --short",
    "git restore --staged --worktree --source HEAD~3 src; git status --short | head; git reset -q --hard",
    "chmod +x README.md; git diff; git commit -qam 'Executable'; git ls-files -s README.md",
    "rm link; echo file now > link; git diff --stat; git add link; git commit -qm 'Link to file'",
    "rm list.txt; ln -s README.md list.txt; git status --short; git commit -qam 'File to link'",
    "rm -r page; echo file > page; git add -A; git commit -qm 'Directory to file'; git status",
    "git checkout -q HEAD~1; ls page; git checkout -q main; cat page",
    "rm new.txt; mkdir new.txt; echo d > new.txt/d; git add -A; git commit -qm 'File to directory'",
    "git format-patch -q -2 -o $SCRATCH/patches; git reset -q --hard HEAD~2;"
    " git am -q --keep-cr --whitespace=nowarn $SCRATCH/patches/*; git log --oneline -2",
    "git diff --binary HEAD~3 HEAD > $SCRATCH/patch; git apply -R $SCRATCH/patch; git status --short;"
    " git reset -q --hard; git apply -R --index -3 $SCRATCH/patch; git status --short; git reset -q --hard",
    "git worktree add -q $SCRATCH/worktree -b tree-branch; cat $SCRATCH/worktree/README.md;"
    " echo w > $SCRATCH/worktree/w; git -C $SCRATCH/worktree add w;"
    " git -C $SCRATCH/worktree commit -qm Worktree; git worktree list | wc -l;"
    " git worktree remove $SCRATCH/worktree; git log -1 --format=%s tree-branch",
    "git notes add -m 'a note' HEAD; git log -1 --notes; git notes list | wc -l",
    "git tag -a v2 -m 'Version 2'; git describe; git tag -d v2; git tag v3; git describe --tags",
    "git bisect start -q HEAD HEAD~6 > /dev/null; git bisect run test ! -d new.txt | tail -1;"
    " git bisect reset 2>&1 | tail -1; git status --short",
    "git blame -s README.md | head; git blame -s src/moved/module1.py | head -3",
    "git grep -c edit -- src | sort | head; git grep -n value_3 HEAD~2 -- src | head -3",
    "git archive HEAD | tar tf - | sort | head -20; git archive HEAD src | tar xO | sha256sum",
    "git ls-files | wc -l; git ls-tree -r HEAD | wc -l; git diff-index HEAD; git diff-files",
    "touch README.md src/*/*.py; git update-index -q --refresh; git status --short",
    "rm -rf src/package2; git status --short | head -3; git checkout-index -f -a; git status --short",
    "git read-tree -m -u HEAD~2; git status --short | head; git reset -q --hard; git status --short",
    "git checkout -q HEAD~5 -- src README.md; git status --short | head; git reset -q --hard",
    "echo '*.bat text eol=crlf' >> .gitattributes; git commit -qam 'CRLF'; git status --short",
    "echo 'text\r' > crlf.bat; git add crlf.bat; git ls-files --eol crlf.bat script.bat",
    "rm -f script.bat crlf.bat; git reset -q; git checkout -q HEAD -- script.bat; od -c script.bat; git reset -q --hard",
    "git config core.autocrlf true; rm LICENSE; git checkout -q LICENSE; od -c LICENSE | head -2;"
    " git status --short; git config --unset core.autocrlf; rm LICENSE; git checkout -q LICENSE;"
    " git status --short",
    "git config filter.up.clean 'tr A-Z a-z'; git config filter.up.smudge 'tr a-z A-Z';"
    " echo '*.up filter=up' >> .gitattributes; echo shout > a.up; git add .; git commit -qm Filter;"
    " git show HEAD:a.up; rm a.up; git checkout -q a.up; cat a.up; git status --short",
    "printf 'version https://git-lfs.github.com/spec/v1\\noid sha256:%064d\\nsize 12\\n' 7 > big.lfs;"
    " git add big.lfs; git commit -qm Pointer; cat big.lfs; git status --short",
    "git sparse-checkout set src assets; ls; git status --short; git ls-files -t | grep -c ^S",
    "git sparse-checkout disable; ls; git status --short",
    "git -c protocol.file.allow=always submodule --quiet add $SUB mods/sub; git status --short;"
    " git commit -qm 'Add a submodule'; cat mods/sub/sub.txt",
    "git submodule --quiet deinit -f mods/sub; ls mods/sub; git status --short;"
    " git -c protocol.file.allow=always submodule --quiet update --init mods/sub; cat mods/sub/sub.txt;"
    " git submodule status mods/sub",
    "git rm -q mods/sub && git commit -qm 'Remove it' && git status --short; ls -d mods",
    "git push -q origin main; git status -sb | head -1",
    "git push -q origin HEAD:refs/heads/other; git branch -r | sort",
    "git clone -q $ORIGIN $SCRATCH/other; cd $SCRATCH/other; echo theirs > theirs; git add theirs;"
    " git commit -qm Theirs; git push -q origin main; git log --oneline -1",
    "git fetch -q; git status -sb | head -1; git pull -q --ff-only; cat theirs; git status -sb",
    "cd $SCRATCH/other; echo theirs2 > theirs; git commit -qam Theirs2; git push -q origin main",
    "echo mine > mine; git add mine; git commit -qm Mine; git pull -q --rebase; git log --oneline -2",
    "git push -q origin main; git push -q origin :other; git fetch -q --prune; git branch -r",
    "git push origin main~1:main; git push -q --force origin main~1:main; git status -sb | head -1;"
    " git push -q origin main",
    "mkdir -p a/b/c; echo deep > a/b/c/d; git add a; git commit -qm Deep; git mv a z; mv z/b z/e;"
    " git add -A; git commit -qm Deeper; git show --name-status --format= HEAD",
    "git mv case/File case/third; git commit -qm Case; ls case; git status --short",
    "cp -r src/package3 src/copied; git add src/copied; git commit -qm Copy; git diff -C --stat HEAD~1",
    "git switch -q --track origin/topic; git status -sb; git log --oneline | wc -l; git switch -q main; git status -sb",
    "git switch -q --detach v1; git status | head -1; git switch -q -; git status --short",
    "git checkout -q --orphan empty; git rm -rqf .; ls -A; echo e > e; git add e; git commit -qm E",
    "git checkout -q main; git status --short; git branch -D empty > /dev/null; ls | wc -l",
    "git gc -q; git status --short; git fsck --connectivity-only 2>&1 | grep -v dangling",
    "git log --format=%H%s | sha256sum; git log --stat -3; git shortlog -s HEAD",
    "git range-diff HEAD~3..HEAD HEAD~3..HEAD; git merge-base HEAD topic; git rev-list --count HEAD",
    "git rev-parse HEAD HEAD^{tree}; git write-tree; git describe --always",
)
