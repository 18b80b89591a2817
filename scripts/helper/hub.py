"""The Hugging Face hub, by its own library: models and data into its cache, and a folder to a repository.

Standard output has lines: "progress BYTES OF_BYTES" about once a second, "note TEXT" for what a user should know, and at the end "result TEXT", which is the
path or the address. HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the like are the library's; the token is in no message.
"""

import errno
import logging
import os
import re
import shutil
import sys
import threading

from child import fail as end, fail_without

USAGE, DATA, NO_INPUT, OS, CANNOT_CREATE, IO, CONFIG = 64, 65, 66, 71, 73, 74, 78
CONFIGURATION = ["config.json"]  # what a plan needs
WHOLE = ["*.json", "*.safetensors", "*.model", "*.txt", "*.py", "*.tiktoken", "*.md", "LICEN[CS]E*", "NOTICE*", "*.jinja"]
# Weights in the layout of Mistral's own programs, and whatever lies in folders but chat templates.
IGNORED = ["consolidated*"] + ["*/" + pattern for pattern in WHOLE if pattern != "*.jinja"]
DATA_FILE = re.compile(r"\.(txt|jsonl?|parquet)(\.gz|\.zst)?$")
PARQUET_BRANCH = "refs/convert/parquet"  # the hub's own copy of data in other formats


def fail(status, message):
    end(status, without_token(message))


def tell(kind, *words):
    print(kind, *words, flush=True)


def library():
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import huggingface_hub
    except ImportError as error:
        fail_without("huggingface_hub", error)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    return huggingface_hub


def without_token(text):
    from huggingface_hub import get_token

    for secret in (os.environ.get("HF_TOKEN"), get_token()):
        if secret:
            text = text.replace(secret.strip(), "***")
    return text


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def server_says(error):
    """The server's own words, or the first line of what the library made of them."""
    text = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    return without_token(text) or type(error).__name__


def explain(error, name, writing=False):
    """Ends with one line that says what to do about it."""
    import httpx2
    from huggingface_hub import constants, errors

    where = f"{constants.ENDPOINT}/{name.split(chr(64))[0]}"
    token = "set HF_TOKEN to a token that may, or run: hf auth login"
    chain = list(causes(error))

    def found(*kinds):
        return next((link for link in chain if isinstance(link, kinds)), None)

    full = next((link for link in chain if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)), None)
    status = getattr(getattr(found(errors.HfHubHTTPError), "response", None), "status_code", None)
    if full:
        fail(IO, f"{name}: the disk of {constants.HF_HUB_CACHE} is full; free some, or set HF_HOME to a folder on a larger one; what is there already is kept")
    if found(errors.GatedRepoError):
        fail(NO_INPUT, f"{name}: is gated; accept its conditions at {where}, and {token}")
    if found(errors.RevisionNotFoundError):
        fail(NO_INPUT, f"{name}: has no such revision; see {where}/tree/main for branches and tags")
    if status == 401 and (writing or "Invalid" in server_says(found(errors.HfHubHTTPError))):
        fail(CONFIG, f"{name}: {constants.ENDPOINT} does not accept the token; {token}")
    if found(errors.RepositoryNotFoundError) and writing:
        fail(CANNOT_CREATE, f"{name}: is no repository of {constants.ENDPOINT} that you may write; check the name, and {token}")
    if found(errors.RepositoryNotFoundError):
        fail(NO_INPUT, f"{name}: is no folder here and no repository of {constants.ENDPOINT} that you may see; check the name, or for a private one {token}")
    if status in (402, 413, 507) or (status == 403 and re.search(r"quota|storage|exceed|limit", server_says(found(errors.HfHubHTTPError)), re.I)):
        fail(CANNOT_CREATE, f"{name}: {constants.ENDPOINT} has no room for it ({server_says(found(errors.HfHubHTTPError))}); free storage there, or take "
                            f"another account; the same command goes on")
    if status == 403:
        fail(CANNOT_CREATE if writing else NO_INPUT,
             f"{name}: the token does not allow it ({server_says(found(errors.HfHubHTTPError))}); {token}")
    if found(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) and constants.is_offline_mode():
        fail(NO_INPUT, f"{name}: is not whole in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it, or fetch it with: hf download {name}")
    if status == 400 or (writing and isinstance(error, ValueError)):
        why = " ".join(without_token(str(error)).split())[:300]
        fail(DATA, f"{name}: {constants.ENDPOINT} refuses it ({why}); mend what it names: the card is README.md")
    if status is not None:
        fail(IO, f"{name}: {constants.ENDPOINT} answers {status} ({server_says(found(errors.HfHubHTTPError))}); try again later: the same command goes on")
    if found(errors.HFValidationError):
        fail(USAGE, f"{name}: is no name that the hub takes ({server_says(error)}); write ORG/NAME")
    if found(httpx2.TransportError, ConnectionError, TimeoutError, errors.LocalEntryNotFoundError, RuntimeError):
        fail(IO, f"{name}: {constants.ENDPOINT} cannot be reached, or the connection broke ({server_says(chain[-1])}); check the network and HF_ENDPOINT; "
                 f"the same command goes on")
    if isinstance(error, OSError):
        fail(IO, f"{name}: {server_says(error)}; check the rights of {constants.HF_HUB_CACHE}")
    raise error


class Growth:
    """Tells once a second how much of `total` has come into the folder."""

    def __init__(self, folder, total):
        self.folder, self.total = folder, total
        self.before = self.bytes()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def bytes(self):
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.folder))
        except OSError:
            return 0

    def watch(self):
        while not self.over.wait(1):
            tell("progress", min(max(self.bytes() - self.before, 0), self.total), self.total)

    def __enter__(self):
        if self.total:
            tell("progress", 0, self.total)
            self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()


def check_room(folder, needed, name):
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        fail(IO, f"{name}: takes {needed / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB free; free some, or set HF_HOME to a folder on a larger one")


def model(repository, revision, part):
    """A snapshot's path; `part` is whole, or config for what plans need. One process of this machine fetches, the others wait for it."""
    hub = library()
    import filelock
    from huggingface_hub import constants

    name = repository + ("@" + revision if revision else "")
    chosen = dict(repo_id=repository, revision=revision or None, allow_patterns=CONFIGURATION if part == "config" else WHOLE, ignore_patterns=IGNORED)
    folder = os.path.join(constants.HF_HUB_CACHE, "models--" + repository.replace("/", "--"))
    try:
        os.makedirs(os.path.join(constants.HF_HUB_CACHE, ".locks"), exist_ok=True)
        with filelock.FileLock(os.path.join(constants.HF_HUB_CACHE, ".locks", os.path.basename(folder) + ".qpipe.lock")):
            needed, why = 0, None
            if not constants.is_offline_mode():
                try:
                    files = hub.snapshot_download(dry_run=True, **chosen)
                    needed = sum(file.file_size for file in files if file.will_download)
                except hub.errors.DryRunError as error:  # what is whole in the cache is used without the hub
                    why = error.__cause__
            check_room(folder, needed, name)
            with Growth(os.path.join(folder, "blobs"), needed):
                snapshot = hub.snapshot_download(local_files_only=constants.is_offline_mode(), **chosen)
    except Exception as error:
        explain(error, name)
    if not os.path.isfile(os.path.join(snapshot, "config.json")):
        fail(DATA, f"{name}: has no config.json; take a repository in the layout of transformers")
    if why is not None:
        tell("note", without_token(f"{constants.ENDPOINT} does not give {name} now ({type(why).__name__}); what the cache has of it is whole and is used"))
    tell("result", snapshot)


def choose_file(files, config, split):
    """The first file of the split, and the folders that have one."""

    def belongs(path, ends):
        stem = DATA_FILE.sub("", path)
        *parents, last = stem.split("/")
        return (DATA_FILE.search(path) and re.search(f"(^|[{ends}]){re.escape(split)}($|[{ends}])", stem)
                and (not config or config in parents or last.startswith(config)))

    # train_sft is a split of its own, and no train, where both are there.
    matching = sorted(path for path in files if belongs(path, "/.-")) or sorted(path for path in files if belongs(path, "/._-"))
    folders = sorted({path.split("/")[0] for path in matching if "/" in path and not path.startswith("data/")})
    return (matching[0] if matching else None), folders


def files_of_data(hub, repository, branch, offline):
    if not offline:
        return hub.list_repo_files(repository, repo_type="dataset", revision=branch)
    top = hub.snapshot_download(repository, repo_type="dataset", revision=branch, local_files_only=True, allow_patterns=[])
    return [os.path.relpath(os.path.join(at, file), top) for at, _, names in os.walk(top) for file in names]


def fetch_file(hub, repository, path, branch, offline, name):
    from huggingface_hub import constants

    where = dict(repo_id=repository, filename=path, repo_type="dataset", revision=branch)
    if offline:
        return hub.hf_hub_download(local_files_only=True, **where)
    info = hub.hf_hub_download(dry_run=True, **where)
    needed = info.file_size if info.will_download else 0
    check_room(constants.HF_HUB_CACHE, needed, name)
    with Growth(os.path.join(constants.HF_HUB_CACHE, "datasets--" + repository.replace("/", "--"), "blobs"), needed):
        return hub.hf_hub_download(**where)


def find_data(hub, repository, config, split, name, offline):
    """The path of the split's first file, or what files there are."""
    seen = []
    for branch in ("main", PARQUET_BRANCH):
        try:
            files = files_of_data(hub, repository, branch, offline)
        except (hub.errors.RevisionNotFoundError, hub.errors.LocalEntryNotFoundError):
            if branch == "main":
                raise
            continue
        path, folders = choose_file(files, config, split)
        if path and len(folders) > 1 and not config:
            fail(CONFIG, f"{name}: there are several configurations ({', '.join(folders[:8])}); write hf:{repository}/{folders[0]}:{split}")
        if path:
            return fetch_file(hub, repository, path, branch, offline, name), seen
        seen += files
    return None, seen


def data(repository, config, split):
    """The path of a split's first file."""
    hub = library()
    import httpx2
    from huggingface_hub import constants

    name = f"{repository}{'/' + config if config else ''}:{split}"
    seen = []
    try:
        path, seen = find_data(hub, repository, config, split, name, constants.is_offline_mode())
    except Exception as error:
        path = None
        if isinstance(error, httpx2.TransportError):
            try:
                path, _ = find_data(hub, repository, config, split, name, True)
            except Exception:
                pass  # the first fault is the one to tell
        if path is None:
            explain(error, "datasets/" + repository)
        tell("note", f"{constants.ENDPOINT} does not give {name} now ({type(error).__name__}); what the cache has of it is used")
    if path is None:
        named = [file for file in seen if DATA_FILE.search(file)][:5]
        fail(NO_INPUT, f"{name}: has no file of this split that is text, JSON lines or Parquet" +
                       (f"; there are {', '.join(named)}" if named else "") + f"; see {constants.ENDPOINT}/datasets/{repository}")
    tell("result", path)


def push(folder, repository, private, create_pr, revision):
    """The files whose names are on standard input, in one commit: a repository never has half of them."""
    hub = library()
    from huggingface_hub import constants

    names = sys.stdin.read().splitlines()
    api = hub.HfApi()
    if not hub.get_token():
        fail(CONFIG, f"{repository}: there is no token to push with; set HF_TOKEN to one that may write, or run: hf auth login")
    try:
        if not create_pr:
            api.create_repo(repository, private=True if private else None, exist_ok=True)
            if private and not api.repo_info(repository).private:
                fail(CANNOT_CREATE, f"{repository}: is there already, and public; make it private in its settings, or push without --private")
            if revision:
                api.create_branch(repository, branch=revision, exist_ok=True)
        there = api.list_repo_files(repository, revision=revision or None)
        ours = names_of_manifest(api, repository, revision, there)
        foreign = [name for name in there if name.endswith((".safetensors", ".safetensors.index.json")) and name not in ours and name not in names]
        if foreign:
            fail(CANNOT_CREATE, f"{repository}: has weights that this qpipe folder does not have ({', '.join(foreign[:3])}); push to another repository, or "
                                f"delete them there")
        operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents(folder, name, repository)) for name in names]
        sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in names}
        total, done = sum(sizes.values()), 0
        for operation in operations:
            tell("progress", done, total)
            api.preupload_lfs_files(repository, additions=[operation], revision=revision or None, create_pr=create_pr)
            done += sizes[operation.path_in_repo]
        tell("progress", total, total)
        operations += [hub.CommitOperationDelete(path_in_repo=name) for name in sorted(ours & set(there) - set(names))]
        commit = api.create_commit(repository, operations=operations, commit_message="Upload a checkpoint quantized by qpipe", revision=revision or None,
                                   create_pr=create_pr)
    except Exception as error:
        explain(error, repository, writing=True)
    tell("result", commit.pr_url or f"{constants.ENDPOINT}/{repository}" + (f"/tree/{revision}" if revision else ""))


def contents(folder, name, repository):
    """The card's blocks load the repository."""
    path = os.path.join(folder, name)
    if name != "README.md":
        return path
    with open(path, "rb") as file:
        return file.read().replace(b"THIS_FOLDER", repository.encode())


def names_of_manifest(api, repository, revision, there):
    """What an earlier push brought; it goes when the new one does not have it."""
    import json

    if "qpipe_files.json" not in there:
        return set()
    try:
        with open(api.hf_hub_download(repository, "qpipe_files.json", revision=revision or None), encoding="utf-8") as file:
            return set(json.load(file).get("files", {})) | {"qpipe_files.json"}
    except (OSError, ValueError, AttributeError):
        return set()
