// Push, list, clone and fetch by isomorphic-git: node isomorphic.mjs REMOTE TOKEN DIRECTORY
import fs from "node:fs";
import path from "node:path";
import git from "isomorphic-git";
import http from "isomorphic-git/http/node";

const [url, token, base] = process.argv.slice(2);
const author = { name: "Iso", email: "iso@example.org" };
let asked = 0;
const onAuth = () => ((asked += 1), { username: "x", password: token });
const remote = { fs, http, url, onAuth };

const first = path.join(base, "first");
fs.mkdirSync(first);
await git.init({ fs, dir: first, defaultBranch: "main" });
fs.writeFileSync(path.join(first, "hello.txt"), "hello\n");
await git.add({ fs, dir: first, filepath: "hello.txt" });
const oid = await git.commit({ fs, dir: first, message: "From JavaScript", author });
const pushed = await git.push({ ...remote, dir: first, ref: "main", remoteRef: "main" });

const refs = await git.listServerRefs({ http, url, onAuth, protocolVersion: 2 });
const second = path.join(base, "second");
await git.clone({ ...remote, dir: second, singleBranch: true, depth: 1 });
const text = fs.readFileSync(path.join(second, "hello.txt"), "utf8");

fs.writeFileSync(path.join(first, "more.txt"), "more\n");
await git.add({ fs, dir: first, filepath: "more.txt" });
const next = await git.commit({ fs, dir: first, message: "More", author });
await git.push({ ...remote, dir: first, ref: "main" });
const fetched = await git.fetch({ ...remote, dir: second, ref: "main" });

let refused = null;
try {
  await git.push({
    ...remote,
    dir: first,
    ref: "main",
    onAuth: () => ({ username: "x", password: "art_v1_" + "0".repeat(40) }),
    onAuthFailure: () => ({ cancel: true }),
  });
} catch (error) {
  refused = error.code;
}
console.log(
  JSON.stringify({
    ok: pushed.ok,
    oid,
    next,
    refs: refs.map((ref) => [ref.ref, ref.oid]),
    text,
    fetched: fetched.fetchHead,
    asked,
    refused,
  }),
);
