/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From text to struct job_spec: the YAML tree is walked along the table of keys (job_schema.c), then keys that were not given get their defaults, then what
 * several keys say together is checked (job_check.c).  The line of every key is kept, so that also the last kind of refusal names one.
 */
#include "proto/job_spec.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "base/text.h"
#include "proto/job_parse.h"
#include "proto/job_schema.h"
#include "proto/yaml_tree.h"

#define CONFIG_MAX 1048576u
#define NAME_MAX_LEN 63
#define PATH_TEXT 256

struct job_spec *job_spec_free(struct job_spec *s) {
        if (!s)
                return NULL;
        for (size_t i = 0; i < job_keys_n; i++)
                if (job_keys[i].type == KEY_STRING || job_keys[i].type == KEY_PATH)
                        free(*(char **)((char *)s + job_keys[i].offset));
        for (int i = 0; i < s->optimizer.n_groups; i++)
                free(s->optimizer.groups[i].match);
        free(s);
        return NULL;
}

DEFINE_CLEANUP(struct job_spec *, job_spec_free);
DEFINE_CLEANUP(struct yaml_node *, yaml_tree_free);

int job_line(const struct job_parse *p, const char *path) {
        const struct job_key *k = job_key_find(path);
        const char *dot = strchr(path, '.');
        size_t len = dot ? (size_t)(dot - path) : 0;

        if (k && p->lines[k - job_keys])
                return p->lines[k - job_keys];
        for (size_t i = 0; dot && i < p->n_sections; i++)
                if (strlen(p->sections[i].name) == len && memcmp(p->sections[i].name, path, len) == 0)
                        return p->sections[i].line;
        return 1;
}

bool job_given(const struct job_parse *p, const char *path) {
        const struct job_key *k = job_key_find(path);

        return k && p->lines[k - job_keys];
}

/* True when some key lies below `path`. */
static bool is_section(const char *path) {
        size_t len = strlen(path);

        for (size_t i = 0; i < job_keys_n; i++)
                if (strncmp(job_keys[i].path, path, len) == 0 && job_keys[i].path[len] == '.')
                        return true;
        return false;
}

/* Names directly below `prefix` ("" for the top), each once; the strings are cut in place in `store`. */
static size_t names_below(const char *prefix, char store[][PATH_TEXT], const char **names, size_t max) {
        size_t skip = strlen(prefix) + (*prefix ? 1 : 0), n = 0;

        for (size_t i = 0; i < job_keys_n && n < max; i++) {
                const char *path = job_keys[i].path;
                size_t len;
                bool seen = false;

                if (skip && (strncmp(path, prefix, skip - 1) != 0 || path[skip - 1] != '.'))
                        continue;
                len = strcspn(path + skip, ".");
                for (size_t j = 0; j < n; j++)
                        seen |= strlen(names[j]) == len && memcmp(names[j], path + skip, len) == 0;
                if (seen)
                        continue;
                snprintf(store[n], PATH_TEXT, "%.*s", (int)len, path + skip);
                names[n] = store[n];
                n++;
        }
        names[n] = NULL;
        return n;
}

/* The one key with this last part, "tp" -> "parallel.tp", for keys put into the wrong section. */
static const char *find_elsewhere(const char *name) {
        for (size_t i = 0; i < job_keys_n; i++) {
                const char *dot = strrchr(job_keys[i].path, '.');

                if (dot && strcmp(dot + 1, name) == 0)
                        return job_keys[i].path;
        }
        return NULL;
}

static int refuse_unknown(const struct job_parse *p, const struct yaml_node *name, const char *prefix, const char *path) {
        char store[24][PATH_TEXT], list[512] = "";
        const char *names[25], *near, *elsewhere = find_elsewhere(name->text);
        size_t n = names_below(prefix, store, names, 24), len = 0;

        near = text_suggest(name->text, names);
        for (size_t i = 0; i < n && len < sizeof(list); i++)
                len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", names[i]);
        if (near)
                return job_refuse(&p->src, name->line, path, "an unknown key", p->e, "did you mean '%s%s%s'? One of %s", prefix, *prefix ? "." : "", near, list);
        if (elsewhere)
                return job_refuse(&p->src, name->line, path, "an unknown key", p->e, "did you mean '%s'? One of %s", elsewhere, list);
        return job_refuse(&p->src, name->line, path, "an unknown key", p->e, "one of %s", list);
}

static int refuse_twice(const struct job_parse *p, const struct yaml_node *name, const char *path, int first) {
        return job_refuse(&p->src, name->line, path, "it a second time", p->e, "once (it is in line %d)", first);
}

static int walk(struct job_parse *p, const struct yaml_node *map, const char *prefix);

static int walk_section(struct job_parse *p, const struct yaml_node *name, const struct yaml_node *value, const char *path) {
        char found[128];

        for (size_t i = 0; i < p->n_sections; i++)
                if (strcmp(p->sections[i].name, path) == 0)
                        return refuse_twice(p, name, path, p->sections[i].line);
        if (value->kind != YAML_TREE_MAP) {
                yaml_node_describe(value, found, sizeof(found));
                return job_refuse(&p->src, name->line, path, found, p->e, "a map of keys");
        }
        if (p->n_sections == JOB_SECTIONS_MAX)
                return error_set(p->e, -E2BIG, "%s: found more than %d sections", p->src.file, JOB_SECTIONS_MAX);
        snprintf(p->sections[p->n_sections].name, sizeof(p->sections[0].name), "%.31s", path);
        p->sections[p->n_sections++].line = name->line;
        return walk(p, value, path);
}

static int walk(struct job_parse *p, const struct yaml_node *map, const char *prefix) {
        for (size_t i = 0; i < map->n; i++) {
                const struct yaml_node *name = yaml_map_key(map, i), *value = yaml_map_value(map, i);
                const struct job_key *k;
                char path[PATH_TEXT];
                int r;

                snprintf(path, sizeof(path), "%s%s%.100s", prefix, *prefix ? "." : "", name->text);
                k = job_key_find(path);
                if (!k && is_section(path))
                        r = walk_section(p, name, value, path);
                else if (!k)
                        r = refuse_unknown(p, name, prefix, path);
                else if (p->lines[k - job_keys])
                        r = refuse_twice(p, name, path, p->lines[k - job_keys]);
                else {
                        p->lines[k - job_keys] = name->line;
                        r = job_key_set(k, value, &p->src, path, p->spec, p->e);
                }
                if (r < 0)
                        return r;
        }
        return 0;
}

static int read_config(struct job_parse *p, struct model_config *ret) {
        int line = job_line(p, "model.config"), r;
        const char *path = p->spec->config_path;
        _cleanup_free_ char *text = NULL;
        size_t len;

        if (!p->src.base_dir) /* else a text from elsewhere could have this process read any file */
                return job_refuse(&p->src, line, "model.config", "a path", p->e, "the values themselves: files are read where the job is submitted");
        r = file_read(path, CONFIG_MAX, &text, &len, p->e);
        if (r < 0) {
                if (p->e) {
                        error_prefix(p->e, "%s:%d: key 'model.config'", p->src.file, line);
                        p->e->code = -EINVAL; /* what is wrong is the job file */
                }
                return -EINVAL;
        }
        return model_config_from_json(text, len, path, ret, p->e);
}

/* The base that single model keys change: from a preset or a config.json; *ret_has false when neither is given. */
static int base_model(struct job_parse *p, struct model_config *ret, bool *ret_has) {
        struct job_spec *s = p->spec;

        *ret_has = s->preset || s->config_path;
        if (s->preset && s->config_path)
                return job_refuse(&p->src, job_line(p, "model.config"), "model.config", "it beside model.preset", p->e, "one of the two");
        if (s->config_path)
                return read_config(p, ret);
        if (s->preset && model_preset(s->preset, ret, NULL) < 0) {
                char found[128], list[256] = "";
                size_t len = 0;

                snprintf(found, sizeof(found), "'%.100s'", s->preset);
                for (const char *const *n = model_preset_names(); *n && len < sizeof(list); n++)
                        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "", *n);
                return job_refuse(&p->src, job_line(p, "model.preset"), "model.preset", found, p->e, "one of %s", list);
        }
        return 0;
}

static int fill_model(struct job_parse *p) {
        static const char *const sizes[] = { "model.vocab_size", "model.hidden_size", "model.intermediate_size", "model.num_hidden_layers",
                                             "model.num_attention_heads" };
        struct model_config base = { 0 }, *m = &p->spec->model, given = p->spec->model;
        bool has = false;
        int r = base_model(p, &base, &has);

        if (r < 0)
                return r;
        for (size_t i = 0; !has && i < ARRAY_SIZE(sizes); i++)
                if (!job_given(p, sizes[i]))
                        return job_refuse(&p->src, job_line(p, sizes[i]), sizes[i], "nothing", p->e, "an integer; or model.preset or model.config");
        *m = has ? base : model_config_defaults();
        for (size_t i = 0; i < job_keys_n; i++) {
                const struct job_key *k = &job_keys[i];
                size_t at = k->offset - offsetof(struct job_spec, model);

                if (strncmp(k->path, "model.", 6) != 0 || k->type == KEY_STRING || k->type == KEY_PATH || !p->lines[i])
                        continue;
                memcpy((char *)m + at, (char *)&given + at, k->type == KEY_BOOL ? sizeof(bool) : sizeof(int64_t)); /* double is as long */
        }
        /* What follows from a value that was changed is not the base's any more. */
        if (job_given(p, "model.num_attention_heads") && !job_given(p, "model.num_key_value_heads"))
                m->num_key_value_heads = 0;
        if ((job_given(p, "model.num_attention_heads") || job_given(p, "model.hidden_size")) && !job_given(p, "model.head_dim"))
                m->head_dim = 0;
        p->head_dim_derived = m->head_dim == 0;
        model_config_derive(m);
        return 0;
}

static int fill_defaults(struct job_parse *p) {
        for (size_t i = 0; i < job_keys_n; i++) {
                const struct job_key *k = &job_keys[i];
                char allowed[384];
                int r = 0;

                if (p->lines[i])
                        continue;
                if (k->required) {
                        job_key_allowed(k, allowed, sizeof(allowed));
                        return job_refuse(&p->src, job_line(p, k->path), k->path, "nothing", p->e, "%s", allowed);
                }
                r = job_key_set_default(k, p->spec, p->e);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Defaults that follow from other keys. */
static void derive(struct job_parse *p) {
        struct job_spec *s = p->spec;

        if (!job_given(p, "parallel.sequence_parallel") || s->parallel.tp == 1)
                s->parallel.sequence_parallel = s->parallel.tp > 1;
        if (!job_given(p, "train.global_batch"))
                s->train.global_batch = s->train.micro_batch * s->parallel.dp;
        if (!job_given(p, "optimizer.min_lr")) {
                char text[40];

                snprintf(text, sizeof(text), "%.15g", s->optimizer.lr / 10); /* a tenth in decimal, as a person would write it */
                s->optimizer.min_lr = strtod(text, NULL);
        }
        if (!job_given(p, "optimizer.warmup_steps")) {
                s->optimizer.warmup_steps = s->train.steps / 20;
                if (s->optimizer.warmup_steps > 2000)
                        s->optimizer.warmup_steps = 2000;
        }
        if (!job_given(p, "optimizer.decay_steps"))
                s->optimizer.decay_steps = s->optimizer.schedule == SCHEDULE_WSD ? s->train.steps / 5 : 0;
}

static int check_name(const struct job_parse *p) {
        const char *name = p->spec->name;
        size_t len = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
        char found[128];

        if (len >= 1 && len <= NAME_MAX_LEN && name[len] == 0 && !strchr("._-", name[0]))
                return 0;
        snprintf(found, sizeof(found), "'%.80s'", name);
        return job_refuse(&p->src, job_line(p, "name"), "name", found, p->e, "1 to %d letters, digits, '.', '_' or '-', a letter or digit first", NAME_MAX_LEN);
}

static int parse_tree(struct job_parse *p, const struct yaml_node *root) {
        int r;

        if (root->kind != YAML_TREE_MAP)
                return error_set(p->e, -EINVAL, "%s:%d: found %s, allowed: keys and values", p->src.file, root->line, root->kind == YAML_TREE_LIST ? "a list" : "a single value");
        r = walk(p, root, "");
        if (r == 0)
                r = fill_defaults(p);
        if (r == 0)
                r = check_name(p);
        if (r == 0)
                r = fill_model(p);
        if (r < 0)
                return r;
        derive(p);
        return job_check(p);
}

int job_spec_parse(const char *text, size_t len, const char *file_name, const char *base_dir, struct job_spec **ret, struct error *e) {
        _cleanup_(job_spec_freep) struct job_spec *s = NULL;
        _cleanup_(yaml_tree_freep) struct yaml_node *root = NULL;
        _cleanup_free_ int *lines = NULL;
        struct job_parse p = { .src = { .file = file_name, .base_dir = base_dir }, .e = e };
        int r;

        if (len > JOB_FILE_MAX)
                return error_set(e, -EFBIG, "%s:1: found %zu bytes, allowed: at most %u", file_name, len, JOB_FILE_MAX);
        r = yaml_tree_parse(text, len, file_name, &root, e);
        if (r < 0)
                return r;
        p.spec = s = calloc(1, sizeof(*s));
        p.lines = lines = calloc(job_keys_n, sizeof(*lines));
        if (!s || !lines)
                return error_set(e, -ENOMEM, "no memory");
        r = parse_tree(&p, root);
        if (r < 0)
                return r;
        *ret = STEAL_PTR(s);
        return 0;
}

int job_spec_set_dp(struct job_spec *s, int dp) {
        int64_t group = (int64_t)s->parallel.tp * s->parallel.pp;

        if (dp < 1 || group * dp > JOB_MAX_RANKS || s->train.global_batch % (s->train.micro_batch * dp) != 0)
                return -EINVAL;
        s->parallel.dp = dp;
        if (s->recovery.min_dp > dp)
                s->recovery.min_dp = dp;
        if (s->test.kill_rank >= group * dp)
                s->test.kill_step = s->test.kill_rank = -1;
        if (s->test.overflow_rank >= group * dp)
                s->test.overflow_step = -1, s->test.overflow_rank = 0;
        return 0;
}

bool job_spec_uses_test_hooks(const struct job_spec *s) {
        return s->test.overflow_step >= 0 || s->test.kill_step >= 0 || s->test.slow_ms > 0 || s->test.flip_step >= 0;
}
