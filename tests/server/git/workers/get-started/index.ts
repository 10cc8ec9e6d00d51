interface Env {
  ARTIFACTS: Artifacts;
}

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    const url = new URL(request.url);

    if (request.method === "POST" && url.pathname === "/repos") {
      // Read the repo name from the request body so the route is reusable.
      const body = (await request.json().catch(() => ({}))) as {
        name?: string;
      };
      const repoName = body.name ?? "starter-repo";

      // Create the repo and return the remote URL plus initial write token.
      const created = await env.ARTIFACTS.create(repoName);

      return Response.json({
        name: created.name,
        remote: created.remote,
        token: created.token,
      });
    }

    return new Response("Use POST /repos to create an Artifacts repo.", {
      status: 405,
      headers: { Allow: "POST" },
    });
  },
} satisfies ExportedHandler<Env>;
