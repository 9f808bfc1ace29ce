/* SPDX-License-Identifier: Apache-2.0 */
#include "base/indexed_text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/mapping.h"

int mapped_file_open(const char *path, struct mapped_file *ret, struct error *e) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;
        void *p = NULL;

        if (fd < 0)
                return error_errno(e, errno, "cannot open '%s'", path);
        if (fstat(fd, &st) < 0)
                return error_errno(e, errno, "cannot look at '%s'", path);
        if (!S_ISREG(st.st_mode))
                return error_set(e, -EINVAL, "'%s' is no regular file, expected one", path);
        if (st.st_size > 0) {
                int r = mapping_open(fd, (size_t)st.st_size, path, &p, e);

                if (r < 0)
                        return r;
        }
        *ret = (struct mapped_file){ .data = p, .size = (size_t)st.st_size };
        return 0;
}

void mapped_file_close(struct mapped_file *m) {
        mapping_close(m->data, m->size);
        *m = (struct mapped_file){ 0 };
}

static bool is_blank(const char *s, size_t len) {
        for (size_t i = 0; i < len; i++)
                if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
                        return false;
        return true;
}

bool text_next_document(const struct mapped_file *m, bool per_line, size_t *at, size_t *ret_start, size_t *ret_len) {
        size_t start = 0, end = 0;
        bool in_document = false;

        while (*at < m->size) {
                const char *line = m->data + *at, *newline = memchr(line, '\n', m->size - *at);
                size_t len = newline ? (size_t)(newline - line) : m->size - *at;
                bool blank = is_blank(line, len);

                if (!blank && !in_document)
                        start = *at;
                if (!blank)
                        end = *at + len;
                *at += len + (newline ? 1 : 0);
                if (blank && in_document)
                        break;
                in_document |= !blank;
                if (in_document && per_line)
                        break;
        }
        if (!in_document)
                return false;
        *ret_start = start;
        *ret_len = end - start;
        return true;
}

int text_check(const struct mapped_file *m, const char *path, struct error *e) {
        const char *zero = m->size ? memchr(m->data, 0, m->size) : NULL;

        if (zero)
                return error_set(e, -EINVAL, "'%s': found a byte 0 at offset %zu, expected text", path, (size_t)(zero - m->data));
        return 0;
}
