export default {
  async fetch(request, env) {
    const url = new URL(request.url);

    if (request.method === "POST" && url.pathname === "/repos") {
      const created = await env.ARTIFACTS.create("starter-repo");
      return Response.json({
        name: created.name,
        remote: created.remote,
      });
    }

    if (request.method === "GET" && url.pathname === "/repos/starter-repo") {
      const repo = await env.ARTIFACTS.get("starter-repo");
      return Response.json({
        id: repo.id,
        name: repo.name,
        remote: repo.remote,
        defaultBranch: repo.defaultBranch,
      });
    }

    if (request.method === "POST" && url.pathname === "/tokens") {
      const repo = await env.ARTIFACTS.get("starter-repo");
      const token = await repo.createToken("read", 3600);
      return Response.json(token);
    }

    return Response.json(
      { message: "Use POST /repos, GET /repos/starter-repo, or POST /tokens." },
      { status: 404 },
    );
  },
};
