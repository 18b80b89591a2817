"""The part of the Hugging Face hub's interface that qpipe's calls use, on this machine: repositories in memory, and faults on request."""
import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
LARGE = 2000  # bytes from which a file is an LFS object


def sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Repository:
    def __init__(self, files=(), gated=False, private=False):
        self.branches = {"main": dict(files)}
        self.gated, self.private, self.commits, self.pull_requests = gated, private, 0, 0

    def sha(self, branch):
        return hashlib.sha1(json.dumps([[n, sha1(d)] for n, d in sorted(self.branches[branch].items())]).encode()).hexdigest()

    def branch_of(self, revision):
        if revision in self.branches:
            return revision
        return next((branch for branch in self.branches if self.sha(branch) == revision), None)


class Hub:
    """with Hub() as hub: hub.models["org/name"] = Repository({...})"""

    def __init__(self):
        self.models, self.datasets = {}, {}
        self.objects = {}  # LFS, by SHA-256
        self.requests = []  # "GET /path"
        self.broken = {}  # file -> (bytes after which the connection ends, how many times)
        self.broken_uploads = 0  # the connection ends this often in the middle of an upload
        self.held = {}  # file -> an event that its second half waits for
        self.sizes = {}  # file -> the size that is said of it
        self.full = False
        self.cards = []  # that were to be checked
        self.card_fault = None
        self.lock = threading.Lock()

    def __enter__(self):
        hub = self

        class Handler(HubHandler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self, pattern):
        return sum(1 for request in self.requests if re.search(pattern, request))


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        pass

    def answer(self, status, value=None, headers=()):
        body = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fault(self, status, code, message):
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def allowed(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind, name):
        """None after an answer that says why."""
        repository = getattr(self.hub, kind).get(name)
        given = self.headers.get("Authorization")
        if given and not self.allowed():
            return self.fault(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and not self.allowed()):
            return self.fault(404 if self.allowed() else 401, "RepoNotFound", "Repository not found")
        if repository.gated and "/api/" not in self.path:
            return self.fault(403, "GatedRepo", f"Access to model {name} is restricted and you are not in the authorized list.")
        return repository

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if re.fullmatch(r"/api/(models|datasets)/[^/]+/[^/]+", path):
            path += "/revision/main"
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            kind, name, what, revision = match.groups()
            repository = self.repository(kind, name)
            if repository is None:
                return
            branch = repository.branch_of(revision)
            if branch is None:
                return self.fault(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = repository.branches[branch]
            if what == "revision":
                return self.answer(200, {"id": name, "sha": repository.sha(branch), "private": repository.private, "gated": False,
                                         "siblings": [{"rfilename": file} for file in files], "tags": [], "downloads": 0, "likes": 0})
            return self.answer(200, [{"type": "file", "path": file, "oid": sha1(data), "size": self.hub.sizes.get(file, len(data))}
                                     for file, data in files.items()])
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(refs/convert/parquet|[^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        self.fault(404, "", f"no such path: {path}")

    def resolve(self, datasets, name, revision, file):
        repository = self.repository("datasets" if datasets else "models", name)
        if repository is None:
            return
        branch = repository.branch_of(revision)
        if branch is None:
            return self.fault(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repository.branches[branch]:
            return self.fault(404, "EntryNotFound", "Entry not found")
        data = repository.branches[branch][file]
        headers = {"X-Repo-Commit": repository.sha(branch), "ETag": f'"{sha1(data)}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return self.answer(200, None, headers | {"Content-Length": str(self.hub.sizes.get(file, len(data)))})
        begin = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin = int(match.group(1))
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        rest = data[begin:]
        with self.hub.lock:
            after, times = self.hub.broken.get(file, (0, 0))
            if times:
                self.hub.broken[file] = (after, times - 1)
        if times:
            self.send_response(206 if begin else 200)
            for header, text in (headers | {"Content-Length": str(len(rest))}).items():
                self.send_header(header, text)
            self.end_headers()
            self.wfile.write(rest[:after])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(2)
        if self.command == "GET" and file in self.hub.held:
            self.send_response(206 if begin else 200)
            for header, text in (headers | {"Content-Length": str(len(rest))}).items():
                self.send_header(header, text)
            self.end_headers()
            self.wfile.write(rest[:len(rest) // 2])
            self.wfile.flush()
            self.hub.held[file].wait(60)
            self.close_connection = True
            return self.connection.shutdown(2)
        self.answer(206 if begin else 200, rest, headers)

    def do_PUT(self):
        oid = self.path.removeprefix("/upload/")
        self.hub.requests.append(f"PUT {self.path}")
        with self.hub.lock:
            breaks = self.hub.broken_uploads > 0
            self.hub.broken_uploads -= breaks
        if breaks:
            self.rfile.read(100)
            self.close_connection = True
            return self.connection.shutdown(2)
        data = self.read_body()
        if sha256(data) != oid:
            return self.fault(400, "", "the hash is another")
        self.hub.objects[oid] = data
        self.answer(200)

    def do_POST(self):
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        self.hub.requests.append(f"POST {path}")
        body = self.read_body()
        if path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            fault = self.hub.card_fault
            return self.answer(400 if fault else 200, {"errors": [{"message": fault}] if fault else [], "warnings": []})
        if not self.allowed():
            return self.fault(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = (wanted.get("organization") or "tester") + "/" + wanted["name"]
            if name in self.hub.models:
                return self.answer(409, {"url": f"{self.hub.address}/{name}", "error": "You already created this model repo"})
            if not name.startswith("tester/"):
                return self.fault(403, "", f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
            self.hub.models[name] = Repository(private=wanted.get("visibility") == "private")
            return self.answer(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if not match:
            return self.fault(404, "", f"no such path: {path}")
        name, what, revision = match.groups()
        repository = self.repository("models", name)
        if repository is None:
            return
        if what == "branch":
            if revision in repository.branches:
                return self.answer(409, {"error": "Reference already exists"})
            repository.branches[revision] = dict(repository.branches["main"])
            return self.answer(201, {})
        if revision not in repository.branches:
            return self.fault(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "preupload":
            return self.answer(200, {"files": [{"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular", "shouldIgnore": False}
                                               for file in json.loads(body)["files"]]})
        self.commit(name, repository, revision, body, "create_pr" in query)

    def batch(self, wanted):
        if self.hub.full:
            return self.fault(403, "", "You have exceeded your storage quota. Upgrade your plan")
        objects = []
        for item in wanted["objects"]:
            upload = {"upload": {"href": f"{self.hub.address}/upload/{item['oid']}", "header": {}}}
            objects.append(item | ({} if item["oid"] in self.hub.objects else {"actions": upload}))
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name, repository, branch, body, create_pr):
        files = dict(repository.branches[branch])
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.fault(400, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        answer = {"success": True}
        if create_pr:
            repository.pull_requests += 1
            branch = f"refs/pr/{repository.pull_requests}"
            answer["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/{repository.pull_requests}"
        repository.branches[branch] = files
        repository.commits += 1
        sha = repository.sha(branch)
        self.answer(200, answer | {"commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}"})
