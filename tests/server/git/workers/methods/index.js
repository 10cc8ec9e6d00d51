// Calls each example of the documentation, and uses a handle in every way that Workers do.
import * as examples from "./functions.js";

async function refused(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { message: error.message, code: error.code, numericCode: error.numericCode };
  }
}

async function merging(artifacts) {
  const repo = await artifacts.get("merge-base");
  const compared = await repo.compare({ head: "main", headRepo: "merge-good" });
  const merged = await repo.merge("main", { headRepo: "merge-good", message: "Take it" });
  const before = (await repo.log())[0].hash;
  const conflicting = await repo.compare({ headRepo: "merge-bad" });
  const error = await refused(() => repo.merge("main", { headRepo: "merge-bad" }));
  const after = (await repo.log())[0];
  return { compared, merged, before, conflicting, error, after };
}

export default {
  async fetch(request, env) {
    const artifacts = env.ARTIFACTS;
    if (new URL(request.url).pathname === "/merging") {
      return Response.json(await merging(artifacts));
    }
    const made = await examples.createRepo(artifacts);
    const repo = await examples.getRepoHandle(artifacts);
    const token = await examples.mintReadToken(artifacts);
    const found = {
      made,
      plain: [repo.name, repo.remote, repo.defaultBranch, repo.description],
      awaited: [await repo.name, await repo.remote, await repo.defaultBranch],
      unawaited: [await artifacts.get("starter-repo").remote],
      pipelined: (await artifacts.get("starter-repo").createToken("read", 900)).scope,
      remote: await examples.getRemoteUrl(artifacts),
      listed: await examples.listRepos(artifacts),
      token,
      tokens: await examples.listRepoTokens(artifacts),
      revoked: await examples.revokeToken(artifacts, token.plaintext),
      revokedById: await examples.revokeToken(artifacts, token.id),
      notRevoked: await examples.revokeToken(artifacts, "0000000000000000"),
      forked: await examples.forkRepo(artifacts),
      fromBaseline: await examples.forkFromBaseline(env, "s1"),
      copy: (await examples.createRepoCopy(env, "agent", "s1", "repo")).name,
      viaCreated: (await (await artifacts.create("agent-007")).repo.info()).remote,
      again: await refused(() => examples.createRepo(artifacts)),
      absent: await refused(() => artifacts.get("absent")),
      log: await repo.log(),
      file: await repo.readFile({ ref: "main", path: "absent" }),
      deleted: await examples.deleteRepo(artifacts),
      neverThere: await artifacts.delete("never-there"),
    };
    return Response.json(found);
  },
};
