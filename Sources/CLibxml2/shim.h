#ifndef VMHA_CLIBXML2_SHIM_H
#define VMHA_CLIBXML2_SHIM_H

#include <libxml/parser.h>
#include <libxml/relaxng.h>
#include <libxml/tree.h>
#include <libxml/xmlerror.h>
#include <libxml/xmlsave.h>

// xmlFree is a mutable global function pointer, which Swift may not touch from several threads.
static inline void vmha_xml_free(void *memory) { xmlFree(memory); }

#endif
