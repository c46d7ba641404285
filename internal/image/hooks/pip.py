# Runs pip in this process, and tells the server on standard output, as lines of JSON:
#   files      archives that pip had before any package code ran, with the digests that the index states
#   code       package code is about to run
#   installed  what is there afterwards
# It also keeps pip from a cached archive whose digest the index does not state now: pip would not compare it then.
# What pip itself prints goes to standard error. Package code runs in processes of its own only: an audit hook sees
# each start before it happens, so that "files" is told in time or not at all.
import gc, hashlib, json, os, runpy, sys, tempfile

scratch = "@SCRATCH@"
channel = os.dup(1)
os.dup2(2, 1)
tempfile.tempdir = scratch + "/tmp"
keep = scratch + "/keep"
report = scratch + "/report.json"
for d in (tempfile.tempdir, keep):
    os.makedirs(d, exist_ok=True)


def tell(**what):
    data = (json.dumps(what) + "\n").encode()
    while data:
        data = data[os.write(channel, data):]


told = False


def tell_files():
    global told
    if told:
        return
    told = True
    names, files = set(os.listdir(keep)), {}
    if names:
        for o in gc.get_objects():
            try:
                if type(o).__name__ == "Link" and o.filename in names and o.hash_name == "sha256":
                    files[o.filename] = [o.url_without_fragment, o.hash]
            except Exception:
                pass  # another pip's Link, or none: then nothing is kept
    tell(files=files)


offered = set()
for _, _, names in os.walk(scratch + "/pip/http-v2"):
    offered.update(names)


def stated(key):
    frame = sys._getframe(2)
    while frame:
        link = frame.f_locals.get("link")
        if type(link).__name__ == "Link":
            return link.hash_name == "sha256" and hashlib.sha224(link.url_without_fragment.encode()).hexdigest() == key
        frame = frame.f_back
    return False


SPAWN = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.system")


def hook(event, args):
    if event == "open":
        path = args[0]
        if type(path) is not str:
            return
        if path == report:
            tell_files()
        elif os.path.basename(path) in offered and not path.endswith(".body") and not stated(os.path.basename(path)):
            raise OSError("the index does not state its digest")  # to pip it is not there
        elif path.startswith(tempfile.tempdir) and path.endswith((".whl", ".tar.gz", ".zip", ".tar.bz2", ".tgz")):
            try:
                os.link(path, keep + "/" + os.path.basename(path))
            except OSError:
                pass  # it is not there yet, or kept already
    elif event in SPAWN:
        if event == "subprocess.Popen" and os.path.basename(str(args[0])) in ("rustc", "lsb_release", "uname"):
            raise OSError("not asked")  # for a header that pip sends; it does without
        if not told:
            tell_files()
        tell(code=True)


def present():
    found = {}
    for d in sys.path:
        try:
            names = os.listdir(d or ".")
        except OSError:
            continue
        for n in names:
            if n.endswith((".dist-info", ".egg-info")):
                found[os.path.join(d, n)] = n
    return found


def describe(path, name):
    stem = name.rsplit(".", 1)[0]
    if name.endswith(".dist-info") and "-" in stem:
        return stem.split("-", 1)
    import importlib.metadata
    try:
        d = importlib.metadata.Distribution.at(path)
        if d.metadata["Name"]:
            return [d.metadata["Name"], d.version]
    except Exception:
        pass
    return (stem.split("-") + [""])[:2]


# A distribution keeps no record of the files of its Python packages, and pip does not replace what it has no record of.
# A record that names the package's metadata alone lets it: the modules stay the distribution's own, and those that pip
# installs come before them on the path. Records that nobody used are taken back, so that a layer has none.
made = []


def lend_records():
    for path in present():
        record = os.path.join(path, "RECORD")
        if not path.endswith(".dist-info") or not path.startswith("/usr/lib/python3") or os.path.lexists(record):
            continue
        base = os.path.dirname(path)
        try:
            files = [os.path.relpath(os.path.join(d, f), base) for d, _, fs in os.walk(path) for f in fs]
            with open(record, "x") as out:
                out.writelines('"%s",,\n' % f for f in sorted(files) + [os.path.relpath(record, base)])
            made.append(record)
        except OSError:
            pass  # then pip says what is in its way


def take_records_back():
    for record in made:
        try:
            os.remove(record)
        except OSError:
            pass  # pip replaced the package


before = present()
lend_records()
sys.addaudithook(hook)
sys.argv = ["pip"] + sys.argv[1:2] + ["--report", report] + sys.argv[2:]
code = 0
try:
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
except SystemExit as e:
    code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
take_records_back()
if code == 0:
    listed = []
    for path, name in present().items():
        n, v = describe(path, name)
        listed.append({"name": n, "version": v, "new": path not in before})
    tell(installed=listed)
sys.exit(code)
