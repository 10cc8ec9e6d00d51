/* Stands between pyfuse3 and libfuse, for what pyfuse3 does not let one say.
 *
 * Python loads this with RTLD_GLOBAL before pyfuse3, so that the dynamic linker finds here what
 * pyfuse3 calls in libfuse ("symbol interposition", ld.so(8)); each function does its part and
 * calls libfuse's own. Three are of interest:
 *
 *   fuse_session_new            libfuse 3.0 to 3.16   the table of handlers passes through here
 *   fuse_session_new_versioned  libfuse 3.17 and on   the same
 *   fuse_session_process_buf                          each request, with the kernel's header
 *
 * Some requests are answered here, without Python. One is sent for each directory when the kernel
 * has all of it, and gets nothing. Directories that a walk comes to next were listed ahead (ahead.py)
 * while the program was busy with the one before. The others are about offered objects
 * (offered.py): look-ups by a program that Python has just answered, of which git sends two for
 * each blob where it writes a tree, and the lists of the 256 folders, which it wants to have before
 * it fetches anything.
 *
 * Nothing here links to libfuse. Its functions are taken from the library that pyfuse3 was linked
 * to, which may be another one than the system's (a wheel can bundle its own).
 *
 * Structures are known from their headers alone: the <fuse_lowlevel.h> that was installed when this
 * was compiled, and the kernel's <linux/fuse.h>. Whether they fit the libfuse that runs is for
 * extension.py to say; it also chooses what to change.
 *
 * Everything runs in the thread that serves the mount, with the GIL; one mount to a process.
 */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUSE_USE_VERSION 32 /* pyfuse3's */
#include <dlfcn.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define COMPILED_FOR (FUSE_MAJOR_VERSION * 100 + FUSE_MINOR_VERSION)

/* From 3.13 on a session can have its own functions to read and write; until 3.16 libfuse leaves
 * HANDLE_KILLPRIV out of its reply to FUSE_INIT. */
#define FORGETS_KILLPRIV (COMPILED_FOR >= 313 && COMPILED_FOR < 317)

#define PUBLIC __attribute__((visibility("default"), used))

struct fuse_session;
typedef struct fuse_session *session_new_fn(struct fuse_args *, const struct fuse_lowlevel_ops *,
                                            size_t, void *);
typedef struct fuse_session *session_new_versioned_fn(struct fuse_args *,
                                                      const struct fuse_lowlevel_ops *, size_t,
                                                      void *, void *);
typedef void process_buf_fn(struct fuse_session *, const struct fuse_buf *);
typedef int reply_buf_fn(fuse_req_t, const char *, size_t);
typedef int reply_entry_fn(fuse_req_t, const struct fuse_entry_param *);
typedef int receive_buf_fn(struct fuse_session *, struct fuse_buf *);
typedef int session_fd_fn(struct fuse_session *);
typedef int version_fn(void);

/* The names of libfuse, given to functions whose C names differ: the header of 3.17 makes an
 * inline function and a macro of fuse_session_new. */
PUBLIC session_new_fn interposed_new __asm__("fuse_session_new");
PUBLIC session_new_versioned_fn interposed_new_versioned __asm__("fuse_session_new_versioned");
PUBLIC process_buf_fn interposed_process_buf __asm__("fuse_session_process_buf");

static struct {
    session_new_fn *session_new;
    session_new_versioned_fn *session_new_versioned;
    process_buf_fn *process_buf;
    reply_buf_fn *reply_buf;
    reply_entry_fn *reply_entry;
    receive_buf_fn *receive_buf;
    session_fd_fn *session_fd;
    version_fn *version;
#if FORGETS_KILLPRIV
    int (*custom_io)(struct fuse_session *, const struct fuse_custom_io *, int);
#endif
} libfuse; /* its own functions */

static struct fuse_lowlevel_ops pyfuse3; /* its handlers */

static struct {
    int enabled; /* change the next session */
    int nested;  /* inside libfuse's own constructor, which may call the other one */
    struct fuse_session *session;
    unsigned capable; /* FUSE_CAP_*, of the kernel and libfuse */
    int by_number;    /* the handle of a file or directory is its inode number */
    uint64_t end;     /* an offset with all these bits is behind the last entry; 0: none is */
    /* To be set in pyfuse3's `init`: */
    unsigned add, drop;
    int killpriv_told;
} mount;

static struct {
    uint64_t unique;
    uint32_t pid;
    int chains; /* it was answered without Python, and another like it may follow */
} request; /* that was given to libfuse last; zeros where its header was not in memory */

static struct {
    unsigned long long lookup, readdir, kept;
} answered; /* here, without Python: how many since `prepare` */

#define LISTINGS 8

/* Whole directories that Python has listed before anybody asked (ahead.py). */
static struct {
    struct {
        uint64_t ino; /* 0: none */
        char *reply;
        size_t length;
    } kept[LISTINGS];
    size_t room; /* of the last reply that was to begin a directory */
    int wanted;  /* Python goes on when the end of a directory was asked for, to list the next */
} listings;

#define OID 20
#define BESIDE (UINT64_C(1) << 31) /* the position of the first of the second table */
#define MOST_LISTED 65536          /* bytes of one reply */
#define ADMITTED 8
#define CMDLINE 4096 /* who has a longer one is not admitted */

struct admitted {
    uint32_t pid; /* 0: none */
    int64_t until_ns;
    size_t length;
    char cmdline[CMDLINE];
};

/* The loose objects that git is offered, and to whom: see offered.py. */
static struct {
    Py_buffer tables[2]; /* sorted oids: of the tree, and beside it; `buf` NULL: there are none */
    uint64_t top, folders, objects; /* numbers: of the directory, of folder 00, of the first oid */
    struct fuse_entry_param folder, object; /* the answers, but for the number */
    struct admitted admitted[ADMITTED];
    unsigned next; /* of `admitted`, to be replaced */
} offered;

/* `name` in the libraries that the caller, pyfuse3, was linked to. */
static void *of_libfuse(const char *name, const void *caller)
{
    static void *handle;
    Dl_info found;

    if (handle == NULL && dladdr(caller, &found) && found.dli_fname != NULL)
        handle = dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return handle == NULL ? NULL : dlsym(handle, name);
}

static void find_libfuse(const void *caller)
{
    if (libfuse.process_buf != NULL)
        return;
    libfuse.session_new = (session_new_fn *)of_libfuse("fuse_session_new", caller);
    libfuse.session_new_versioned =
        (session_new_versioned_fn *)of_libfuse("fuse_session_new_versioned", caller);
    libfuse.receive_buf = (receive_buf_fn *)of_libfuse("fuse_session_receive_buf", caller);
    libfuse.session_fd = (session_fd_fn *)of_libfuse("fuse_session_fd", caller);
    libfuse.version = (version_fn *)of_libfuse("fuse_version", caller);
    libfuse.reply_buf = (reply_buf_fn *)of_libfuse("fuse_reply_buf", caller);
    libfuse.reply_entry = (reply_entry_fn *)of_libfuse("fuse_reply_entry", caller);
#if FORGETS_KILLPRIV
    libfuse.custom_io = of_libfuse("fuse_session_custom_io", caller);
#endif
    libfuse.process_buf = (process_buf_fn *)of_libfuse("fuse_session_process_buf", caller);
}

/* The handle of what was never opened. pyfuse3 passes on handles only, so it gets the number. */

static void by_number(struct fuse_file_info *file, fuse_ino_t ino)
{
    if (mount.by_number)
        file->fh = ino;
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *file)
{
    by_number(file, ino);
    pyfuse3.read(req, ino, size, offset, file);
}

static void on_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
                     struct fuse_file_info *file)
{
    by_number(file, ino);
    pyfuse3.write(req, ino, data, size, offset, file);
}

static void on_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *data, off_t offset,
                         struct fuse_file_info *file)
{
    by_number(file, ino);
    pyfuse3.write_buf(req, ino, data, offset, file);
}

static void on_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *file)
{
    by_number(file, ino);
    pyfuse3.fsync(req, ino, datasync, file);
}

static void on_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *file)
{
    by_number(file, ino);
    pyfuse3.fsyncdir(req, ino, datasync, file);
}

/* Offered objects. Who looks decides what is there, so the kernel asks each time; Python decides
 * for a program, and what it is told stands for a moment, while the program is the same. */

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* The arguments of a process as proc(5) has them; -1: they cannot be read. */
static ssize_t read_cmdline(uint32_t pid, char *buffer)
{
    char path[32];
    ssize_t length;
    int fd;

    snprintf(path, sizeof(path), "/proc/%u/cmdline", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    length = read(fd, buffer, CMDLINE);
    close(fd);
    return length;
}

static int is_admitted(uint32_t pid)
{
    char cmdline[CMDLINE];

    for (const struct admitted *one = offered.admitted; one < offered.admitted + ADMITTED; one++)
        if (one->pid == pid && pid != 0)
            return now_ns() < one->until_ns &&
                   read_cmdline(pid, cmdline) == (ssize_t)one->length &&
                   memcmp(cmdline, one->cmdline, one->length) == 0;
    return 0;
}

/* The bytes that lower-case hexadecimal digits stand for; -1: it is something else. */
static int from_hex(const char *digits, size_t bytes, unsigned char *out)
{
    if (strlen(digits) != 2 * bytes)
        return -1;
    for (size_t at = 0; at < 2 * bytes; at++) {
        char digit = digits[at];
        int value = digit >= '0' && digit <= '9'   ? digit - '0'
                    : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                                                   : -1;
        if (value < 0)
            return -1;
        out[at / 2] = (unsigned char)(at % 2 ? out[at / 2] | value : value << 4);
    }
    return 0;
}

/* How many oids of `table` come before all that begin with the `length` bytes at `oid`. */
static int64_t count_before(const Py_buffer *table, const unsigned char *oid, size_t length)
{
    const unsigned char *oids = table->buf;
    int64_t first = 0, end = table->len / OID;

    while (first < end) {
        int64_t middle = first + (end - first) / 2;

        if (memcmp(oids + middle * OID, oid, length) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    return first;
}

/* Where `oid` is among those that are offered; -1: it is not. */
static int64_t position_of(const unsigned char *oid)
{
    for (int which = 0; which < 2; which++) {
        const Py_buffer *table = &offered.tables[which];
        int64_t at = count_before(table, oid, OID);

        if (at < table->len / OID && memcmp((char *)table->buf + at * OID, oid, OID) == 0)
            return at + (which ? (int64_t)BESIDE : 0);
    }
    return -1;
}

static void reply_number(fuse_req_t req, const struct fuse_entry_param *answer, uint64_t ino)
{
    struct fuse_entry_param entry = *answer;

    entry.ino = entry.attr.st_ino = ino;
    libfuse.reply_entry(req, &entry);
    answered.lookup++;
}

/* Whether the look-up is answered: only where something is there. */
static int look_up_offered(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    unsigned char oid[OID];
    int64_t position;

    if (offered.tables[0].buf == NULL)
        return 0;
    if (parent == offered.top) {
        if (from_hex(name, 1, oid) < 0 || !is_admitted(request.pid))
            return 0;
        reply_number(req, &offered.folder, offered.folders + oid[0]);
        return 1;
    }
    if (parent < offered.folders || parent >= offered.folders + 256)
        return 0;
    oid[0] = (unsigned char)(parent - offered.folders);
    if (from_hex(name, OID - 1, oid + 1) < 0 || (position = position_of(oid)) < 0 ||
        !is_admitted(request.pid))
        return 0;
    reply_number(req, &offered.object, offered.objects + (uint64_t)position);
    return 1;
}

/* One entry, of which the kernel keeps nothing but the name: who wants to know more looks it up.
 * (Without a node, see `fuse_direntplus_link` in the kernel's fs/fuse/readdir.c.) */
static size_t add_object(char *to, const unsigned char *oid, uint64_t ino, uint64_t next_offset)
{
    static const char digits[] = "0123456789abcdef";
    struct fuse_direntplus *entry = (struct fuse_direntplus *)to;
    size_t length = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + 2 * (OID - 1));

    memset(to, 0, length);
    entry->dirent.ino = ino;
    entry->dirent.off = next_offset;
    entry->dirent.namelen = 2 * (OID - 1);
    entry->dirent.type = S_IFLNK >> 12;
    for (size_t at = 1; at < OID; at++) {
        entry->dirent.name[2 * at - 2] = digits[oid[at] >> 4];
        entry->dirent.name[2 * at - 1] = digits[oid[at] & 15];
    }
    return length;
}

/* The objects in the folder `byte`, those of the tree first, from number `offset` on. */
static void list_offered(fuse_req_t req, unsigned char byte, size_t size, uint64_t offset)
{
    static _Alignas(struct fuse_direntplus) char reply[MOST_LISTED];
    const size_t each = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + 2 * (OID - 1));
    uint64_t number = 0;
    size_t used = 0;

    if (size > sizeof(reply))
        size = sizeof(reply);
    for (int which = 0; which < 2; which++) {
        const Py_buffer *table = &offered.tables[which];
        int64_t at = count_before(table, &byte, 1);

        for (; at < table->len / OID && used + each <= size; at++, number++) {
            const unsigned char *oid = (unsigned char *)table->buf + at * OID;
            uint64_t position = (uint64_t)at + (which ? BESIDE : 0);

            if (oid[0] != byte)
                break;
            if (number >= offset)
                used += add_object(reply + used, oid, offered.objects + position, number + 1);
        }
    }
    libfuse.reply_buf(req, reply, used);
    answered.readdir++;
    request.chains = 1;
}

/* Whether the directory is answered with what is kept of it, which is for one answer. */
static int list_kept(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    for (int at = 0; at < LISTINGS; at++)
        if (listings.kept[at].ino == ino && listings.kept[at].length <= size) {
            libfuse.reply_buf(req, listings.kept[at].reply, listings.kept[at].length);
            listings.kept[at].ino = 0;
            answered.readdir++;
            answered.kept++;
            request.chains = 1; /* its end is asked for next */
            return 1;
        }
    return 0;
}

static void on_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                           struct fuse_file_info *file)
{
    if (offset == 0) {
        listings.room = size;
        if (list_kept(req, ino, size))
            return;
    }
    if (mount.end != 0 && ((uint64_t)offset & mount.end) == mount.end) {
        libfuse.reply_buf(req, NULL, 0);
        answered.readdir++;
        /* With offered objects the fast loop is on. Who lists ahead gets his turn. */
        request.chains = offered.tables[0].buf != NULL && !listings.wanted;
        return;
    }
    if (offered.tables[0].buf != NULL && ino >= offered.folders && ino < offered.folders + 256) {
        list_offered(req, (unsigned char)(ino - offered.folders), size, (uint64_t)offset);
        return;
    }
    by_number(file, ino);
    pyfuse3.readdirplus(req, ino, size, offset, file);
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    request.chains = look_up_offered(req, parent, name);
    if (!request.chains)
        pyfuse3.lookup(req, parent, name);
}

#if FORGETS_KILLPRIV
static ssize_t plain_writev(int fd, struct iovec *parts, int count, void *userdata)
{
    (void)userdata;
    return writev(fd, parts, count);
}

static ssize_t plain_read(int fd, void *buffer, size_t size, void *userdata)
{
    (void)userdata;
    return read(fd, buffer, size);
}

/* The reply to FUSE_INIT, and no other one. */
static ssize_t complete_reply(int fd, struct iovec *parts, int count, void *userdata)
{
    static const struct fuse_custom_io afterwards = {.writev = plain_writev, .read = plain_read};

    if (count == 2 && parts[1].iov_len >= offsetof(struct fuse_init_out, max_background)) {
        ((struct fuse_init_out *)parts[1].iov_base)->flags |= FUSE_HANDLE_KILLPRIV;
        mount.killpriv_told = 1;
    }
    libfuse.custom_io(mount.session, &afterwards, fd);
    return plain_writev(fd, parts, count, userdata);
}
#endif

static void tell_killpriv(void)
{
    if (libfuse.version != NULL && libfuse.version() >= 317) {
        mount.killpriv_told = 1;
        return;
    }
#if FORGETS_KILLPRIV
    static const struct fuse_custom_io once = {.writev = complete_reply, .read = plain_read};

    if (mount.session != NULL && libfuse.custom_io != NULL && libfuse.session_fd != NULL)
        libfuse.custom_io(mount.session, &once, libfuse.session_fd(mount.session));
#endif
}

static void on_init(void *userdata, struct fuse_conn_info *connection)
{
    unsigned add;

    mount.capable = connection->capable;
    mount.add = mount.drop = 0;
    mount.by_number = 0;
    mount.end = 0;
    pyfuse3.init(userdata, connection); /* Python chooses here: see `choose` */
    add = mount.add & connection->capable;
    /* Not want_ext: since 3.17 libfuse takes over only one of the two. */
    connection->want = (connection->want | add) & ~mount.drop;
    if (add & FUSE_CAP_HANDLE_KILLPRIV)
        tell_killpriv();
}

/* Our copy of the table that pyfuse3 gives to libfuse, which copies it again. NULL: leave it. */
static struct fuse_lowlevel_ops *changed(const struct fuse_lowlevel_ops *given, size_t size)
{
    struct fuse_lowlevel_ops *table;

    if (!mount.enabled || mount.nested ||
        size < offsetof(struct fuse_lowlevel_ops, readdirplus) + sizeof(given->readdirplus))
        return NULL;
    if (!given->init || !given->lookup || !given->read || !given->write || !given->write_buf ||
        !given->fsync || !given->fsyncdir || !given->readdirplus)
        return NULL;
    table = malloc(size);
    if (table == NULL)
        return NULL;
    memcpy(&pyfuse3, given, size < sizeof(pyfuse3) ? size : sizeof(pyfuse3));
    memcpy(table, given, size);
    table->init = on_init;
    table->lookup = on_lookup;
    table->read = on_read;
    table->write = on_write;
    table->write_buf = on_write_buf;
    table->fsync = on_fsync;
    table->fsyncdir = on_fsyncdir;
    table->readdirplus = on_readdirplus;
    return table;
}

static struct fuse_session *new_session(struct fuse_args *args,
                                        const struct fuse_lowlevel_ops *given, size_t size,
                                        void *version, void *userdata, int versioned)
{
    struct fuse_lowlevel_ops *ours = changed(given, size);
    const struct fuse_lowlevel_ops *table = ours == NULL ? given : ours;
    struct fuse_session *made = NULL;

    mount.nested++;
    if (versioned && libfuse.session_new_versioned != NULL)
        made = libfuse.session_new_versioned(args, table, size, version, userdata);
    else if (!versioned && libfuse.session_new != NULL)
        made = libfuse.session_new(args, table, size, userdata);
    mount.nested--;
    if (ours != NULL)
        mount.session = made;
    free(ours);
    return made;
}

struct fuse_session *interposed_new(struct fuse_args *args, const struct fuse_lowlevel_ops *table,
                                    size_t size, void *userdata)
{
    find_libfuse(__builtin_return_address(0));
    return new_session(args, table, size, NULL, userdata, 0);
}

struct fuse_session *interposed_new_versioned(struct fuse_args *args,
                                              const struct fuse_lowlevel_ops *table, size_t size,
                                              void *version, void *userdata)
{
    find_libfuse(__builtin_return_address(0));
    return new_session(args, table, size, version, userdata, 1);
}

static void process(struct fuse_session *session, const struct fuse_buf *buffer)
{
    const struct fuse_in_header *header = buffer->mem;
    uint32_t opcode = 0;

    memset(&request, 0, sizeof(request));
    if (!(buffer->flags & FUSE_BUF_IS_FD) && buffer->size >= sizeof(*header)) {
        request.unique = header->unique;
        request.pid = header->pid;
        opcode = header->opcode;
    }
    libfuse.process_buf(session, buffer);
    if (opcode == FUSE_IOCTL && offered.tables[0].buf != NULL && pyfuse3.ioctl == NULL)
        request.chains = 1; /* libfuse has refused it: overlayfs asks for flags of what it copies */
}

/* The look-up after one that was answered here mostly follows at once; numbers as in fastloop.py,
 * which says why. */
#define POLLS 50
#define LONGER 5
#define TRY_EACH 16
#define MOST 8
#define IN_A_ROW 64
#define AT_ONCE_NS 2000000

static union {
    struct fuse_buf buffer; /* libfuse allocates its memory, once for each session */
    char room[256];         /* the structure of a newer libfuse may be longer */
} next;

static int more_cpus; /* this process may use more than one */

/* NULL: there is none yet. An error is met again by pyfuse3. */
static const struct fuse_buf *next_request(struct fuse_session *session)
{
    static unsigned worth, waits;
    struct pollfd device = {.events = POLLIN};
    int attempts = worth > 0 && more_cpus ? LONGER * POLLS : POLLS;

    if (libfuse.receive_buf == NULL || libfuse.session_fd == NULL)
        return NULL;
    device.fd = libfuse.session_fd(session);
    for (int times = 0; times < attempts; times++)
        if (poll(&device, 1, 0) > 0) {
            if (times >= POLLS && worth < MOST)
                worth++;
            return libfuse.receive_buf(session, &next.buffer) > 0 ? &next.buffer : NULL;
        }
    if (worth > 0)
        worth--;
    else if (++waits % TRY_EACH == 0)
        worth = 1;
    return NULL;
}

/* pyfuse3 awaits one handler when this returns: so the first request that is not answered here is
 * the last one. */
void interposed_process_buf(struct fuse_session *session, const struct fuse_buf *buffer)
{
    int64_t until;

    find_libfuse(__builtin_return_address(0));
    if (libfuse.process_buf == NULL)
        return;
    process(session, buffer);
    until = request.chains ? now_ns() + AT_ONCE_NS : 0;
    for (int times = 0; request.chains && times < IN_A_ROW && now_ns() < until; times++) {
        buffer = next_request(session);
        if (buffer == NULL)
            break;
        process(session, buffer);
    }
}

/* For Python; signatures and meanings are in _interposer.pyi. */

static void withdraw_offer(void)
{
    for (int which = 0; which < 2; which++)
        if (offered.tables[which].buf != NULL)
            PyBuffer_Release(&offered.tables[which]);
    memset(&offered, 0, sizeof(offered));
}

static void forget_listings(void)
{
    size_t room = listings.room;

    for (int at = 0; at < LISTINGS; at++)
        free(listings.kept[at].reply);
    memset(&listings, 0, sizeof(listings));
    listings.room = room;
}

static PyObject *prepare(PyObject *self, PyObject *unused)
{
    cpu_set_t cpus;

    (void)self, (void)unused;
    withdraw_offer();
    forget_listings();
    memset(&mount, 0, sizeof(mount));
    memset(&request, 0, sizeof(request));
    memset(&answered, 0, sizeof(answered));
    free(next.buffer.mem);
    memset(&next, 0, sizeof(next));
    more_cpus = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) > 1;
    mount.enabled = 1;
    Py_RETURN_NONE;
}

#define ANSWER(name, made)                                   \
    static PyObject *name(PyObject *self, PyObject *unused) \
    {                                                        \
        (void)self, (void)unused;                            \
        return made;                                         \
    }

ANSWER(called, PyBool_FromLong(mount.session != NULL))
ANSWER(capable, PyLong_FromUnsignedLong(mount.capable))
ANSWER(killpriv_told, PyBool_FromLong(mount.killpriv_told))
ANSWER(caller, PyLong_FromUnsignedLong(request.pid))
ANSWER(answered_here, Py_BuildValue("KKK", answered.lookup, answered.readdir, answered.kept))
ANSWER(listing_room, PyLong_FromSize_t(listings.room))
ANSWER(unique, PyLong_FromUnsignedLongLong(request.unique))

static PyObject *choose(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "IIp", &mount.add, &mount.drop, &mount.by_number))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *answer_ends(PyObject *self, PyObject *bits)
{
    uint64_t end = PyLong_AsUnsignedLongLong(bits);

    (void)self;
    if (PyErr_Occurred())
        return NULL;
    mount.end = libfuse.reply_buf == NULL ? 0 : end;
    Py_RETURN_NONE;
}

static PyObject *offer_objects(PyObject *self, PyObject *args)
{
    unsigned uid, gid, size;
    unsigned long long top, folders, objects;
    long long time_ns;
    double valid_s;
    struct stat of = {0};
    Py_buffer oids, beside;

    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*KKKIILId", &oids, &beside, &top, &folders, &objects, &uid, &gid,
                          &time_ns, &size, &valid_s))
        return NULL;
    withdraw_offer();
    if (libfuse.reply_buf == NULL) { /* Python answers all of them */
        PyBuffer_Release(&oids);
        PyBuffer_Release(&beside);
        Py_RETURN_NONE;
    }
    offered.tables[0] = oids;
    offered.tables[1] = beside;
    offered.top = top;
    offered.folders = folders;
    offered.objects = objects;
    of.st_uid = uid;
    of.st_gid = gid;
    of.st_atim.tv_sec = time_ns / 1000000000;
    of.st_atim.tv_nsec = time_ns % 1000000000;
    of.st_mtim = of.st_ctim = of.st_atim;
    of.st_blksize = 4096;
    of.st_mode = S_IFDIR | 0555;
    of.st_nlink = 2;
    offered.folder = (struct fuse_entry_param){.attr = of, .attr_timeout = valid_s};
    of.st_mode = S_IFLNK | 0777;
    of.st_nlink = 1;
    of.st_size = size;
    offered.object = (struct fuse_entry_param){.attr = of, .attr_timeout = valid_s};
    Py_RETURN_NONE;
}

static PyObject *admit(PyObject *self, PyObject *args)
{
    struct admitted *one = &offered.admitted[offered.next];
    unsigned pid;
    ssize_t length;
    double for_s;

    (void)self;
    if (!PyArg_ParseTuple(args, "Id", &pid, &for_s))
        return NULL;
    for (unsigned at = 0; at < ADMITTED; at++)
        if (offered.admitted[at].pid == pid)
            one = &offered.admitted[at];
    if (one->pid != pid)
        offered.next = (offered.next + 1) % ADMITTED;
    one->pid = 0;
    length = libfuse.reply_entry == NULL ? -1 : read_cmdline(pid, one->cmdline);
    if (length > 0 && length < CMDLINE) {
        one->pid = pid;
        one->length = (size_t)length;
        one->until_ns = now_ns() + (int64_t)(for_s * 1e9);
    }
    Py_RETURN_NONE;
}

static PyObject *keep_listing(PyObject *self, PyObject *args)
{
    unsigned long long ino;
    Py_buffer reply;
    int at = 0;

    (void)self;
    if (!PyArg_ParseTuple(args, "Ky*", &ino, &reply))
        return NULL;
    while (at < LISTINGS && listings.kept[at].ino != 0)
        at++;
    if (at < LISTINGS && libfuse.reply_buf != NULL) {
        free(listings.kept[at].reply);
        listings.kept[at].reply = malloc((size_t)reply.len);
        if (listings.kept[at].reply != NULL) {
            memcpy(listings.kept[at].reply, reply.buf, (size_t)reply.len);
            listings.kept[at].length = (size_t)reply.len;
            listings.kept[at].ino = ino;
            PyBuffer_Release(&reply);
            Py_RETURN_TRUE;
        }
    }
    PyBuffer_Release(&reply);
    Py_RETURN_FALSE;
}

static PyObject *want_listings(PyObject *self, PyObject *wanted)
{
    (void)self;
    listings.wanted = PyObject_IsTrue(wanted) > 0;
    Py_RETURN_NONE;
}

static PyObject *kept_listings(PyObject *self, PyObject *unused)
{
    PyObject *found = PyList_New(0);

    (void)self, (void)unused;
    for (int at = 0; found != NULL && at < LISTINGS; at++) {
        PyObject *ino;

        if (listings.kept[at].ino == 0)
            continue;
        ino = PyLong_FromUnsignedLongLong(listings.kept[at].ino);
        if (ino == NULL || PyList_Append(found, ino) < 0)
            Py_CLEAR(found);
        Py_XDECREF(ino);
    }
    return found;
}

static PyObject *take_listings_back(PyObject *self, PyObject *unused)
{
    PyObject *found = kept_listings(self, unused);

    forget_listings(); /* even if they cannot be told: none of them is sent any more */
    return found;
}

static PyMethodDef functions[] = {
    {"prepare", prepare, METH_NOARGS, NULL},
    {"called", called, METH_NOARGS, NULL},
    {"capable", capable, METH_NOARGS, NULL},
    {"choose", choose, METH_VARARGS, NULL},
    {"answer_ends", answer_ends, METH_O, NULL},
    {"killpriv_told", killpriv_told, METH_NOARGS, NULL},
    {"caller", caller, METH_NOARGS, NULL},
    {"unique", unique, METH_NOARGS, NULL},
    {"offer_objects", offer_objects, METH_VARARGS, NULL},
    {"answered", answered_here, METH_NOARGS, NULL},
    {"admit", admit, METH_VARARGS, NULL},
    {"keep_listing", keep_listing, METH_VARARGS, NULL},
    {"want_listings", want_listings, METH_O, NULL},
    {"listing_room", listing_room, METH_NOARGS, NULL},
    {"kept_listings", kept_listings, METH_NOARGS, NULL},
    {"take_listings_back", take_listings_back, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_interposer", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__interposer(void)
{
    PyObject *module = PyModule_Create(&definition);

    if (module != NULL && PyModule_AddIntConstant(module, "COMPILED_FOR", COMPILED_FOR) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
