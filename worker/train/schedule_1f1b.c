// SPDX-License-Identifier: Apache-2.0
#include "worker/train/schedule_1f1b.h"

int schedule_1f1b(int pp, int stage, int n_micro, struct schedule_action *actions) {
        int ahead = pp - 1 - stage < n_micro ? pp - 1 - stage : n_micro;
        int forward = 0, backward = 0, n = 0;

        while (forward < ahead)
                actions[n++] = (struct schedule_action){ false, forward++ };
        while (backward < n_micro) {
                if (forward < n_micro)
                        actions[n++] = (struct schedule_action){ false, forward++ };
                actions[n++] = (struct schedule_action){ true, backward++ };
        }
        return n;
}
