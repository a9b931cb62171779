#ifndef CPAGEKERNELS_H
#define CPAGEKERNELS_H
#endif
