async function createRepo(artifacts) {
  const created = await artifacts.create("starter-repo", {
    description: "Repository for automation experiments",
    readOnly: false,
    setDefaultBranch: "main",
  });

  return {
    defaultBranch: created.defaultBranch,
    name: created.name,
    remote: created.remote,
    initialToken: created.token,
  };
}

async function getRepoHandle(artifacts) {
  const repo = await artifacts.get("starter-repo");
  return repo;
}

async function listRepos(artifacts) {
  const page = await artifacts.list({ limit: 10 });

  return {
    names: page.repos.map((repo) => repo.name),
    nextCursor: page.cursor ?? null,
  };
}

async function importFromGitHub(artifacts) {
  const imported = await artifacts.import({
    source: {
      url: "https://github.com/cloudflare/workers-sdk",
      branch: "main",
    },
    target: {
      name: "workers-sdk",
    },
  });

  return {
    name: imported.name,
    remote: imported.remote,
    token: imported.token,
  };
}

async function deleteRepo(artifacts) {
  return artifacts.delete("starter-repo");
}

async function getRemoteUrl(artifacts) {
  const repo = await artifacts.get("starter-repo");
  return repo.remote;
}

async function mintReadToken(artifacts) {
  const repo = await artifacts.get("starter-repo");
  return repo.createToken("read", 3600);
}

async function listRepoTokens(artifacts) {
  const repo = await artifacts.get("starter-repo");
  const result = await repo.listTokens();
  return {
    total: result.total,
    tokens: result.tokens,
  };
}

async function revokeToken(artifacts, tokenOrId) {
  const repo = await artifacts.get("starter-repo");
  return repo.revokeToken(tokenOrId);
}

async function forkRepo(artifacts) {
  const repo = await artifacts.get("starter-repo");
  const forked = await repo.fork("starter-repo-copy", {
    description: "Fork for testing",
    defaultBranchOnly: true,
    readOnly: false,
  });

  return forked.remote;
}

async function createRepoCopy(env, agentName, sessionId, repoName) {
  const uniqueRepoName = `${agentName}-${sessionId}-${repoName}`;

  return env.ARTIFACTS.create(uniqueRepoName);
}

async function forkFromBaseline(env, sessionId) {
  const baseline = await env.ARTIFACTS.get("starter-repo");
  const forked = await baseline.fork(`starter-repo-${sessionId}`, {
    description: `Fork for session ${sessionId}`,
    defaultBranchOnly: true,
    readOnly: false,
  });

  return {
    name: forked.name,
    remote: forked.remote,
  };
}
